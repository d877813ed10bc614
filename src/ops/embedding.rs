//! Rows of a table by number. Tables are frozen, so there is no gradient.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "embedding";

/// Row `ids[i]` of the table as row i.
///
/// # Shapes
/// table (V, C); result (ids, C).
///
/// # Errors
/// [`Error::Shape`] for an id beyond the table.
pub fn forward(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (rows, width) = (table.shape().rows(), table.shape().last());
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        return Err(Error::shape(NAME, format!("row {id} of a table {}", table.shape())));
    }
    let mut y = Tensor::empty(table.device(), [ids.len(), width]);
    match table.device() {
        Device::Cpu(_) => {
            let table = table.host();
            for (row, &id) in y.host_mut().chunks_mut(width).zip(ids) {
                row.copy_from_slice(&table[id as usize * width..][..width]);
            }
        }
    }
    Ok(y)
}

/// The specification.
pub struct Spec;

fn ids(case: &Case) -> Vec<u32> {
    (0..case.get("N")).map(|i| ((7 * i + 3) % case.get("V")) as u32).collect()
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [(1, 1, 1), (5, 11, 7), (77, 30, 48)].map(|(n, v, c)| Case::new(&[("N", n), ("V", v), ("C", c)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("N", 77), ("V", 49408), ("C", 768)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        vec![Input::frozen("table", [case.get("V"), case.get("C")])]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = case.get("C");
        vec![
            ids(case)
                .iter()
                .flat_map(|&id| (0..c).map(move |j| (id as usize, j)))
                .map(|(id, j)| inputs[0][id * c + j])
                .collect(),
        ]
    }

    fn run(&self, case: &Case, _tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![forward(inputs[0].tensor(), &ids(case))?.into()])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Exact
    }

    fn flops(&self, _case: &Case) -> u64 {
        0
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("N") * case.get("C")
    }
}

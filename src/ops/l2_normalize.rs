//! Rows of unit length: `y = x / |x|`. Embeddings are only compared, so there is no gradient.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Device, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "l2_normalize";

/// Every row divided by its length; a row of zeros stays one.
///
/// # Shapes
/// (.., C), kept.
///
/// # Errors
/// None on the CPU.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = x.clone();
    match x.device() {
        Device::Cpu(_) => {
            for row in y.host_mut().chunks_mut(x.shape().last().max(1)) {
                let square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
                let scale = if square == 0.0 { 0.0 } else { square.sqrt().recip() };
                row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
            }
        }
    }
    Ok(y)
}

/// The specification.
pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [(1, 1), (3, 7), (5, 513)].map(|(m, c)| Case::new(&[("M", m), ("C", c)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("M", 16), ("C", 512)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        vec![Input::frozen("x", [case.get("M"), case.get("C")])]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let unit = |row: &[f64]| {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter().map(|v| v / length).collect::<Vec<_>>()
        };
        vec![inputs[0].chunks(case.get("C")).flat_map(unit).collect()]
    }

    fn run(&self, _case: &Case, _tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![forward(inputs[0].tensor())?.into()])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Norm
    }

    fn flops(&self, case: &Case) -> u64 {
        3 * (case.get("M") * case.get("C")) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * case.get("C")
    }
}

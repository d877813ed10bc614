use super::{NAME, apply};
use crate::ops::attention;
use crate::ops::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Result, Tape, Var};

/// The specification.
pub struct Spec;

const DIMS: [&str; 5] = ["B", "F", "N", "h", "D"];

fn case(dims: [usize; 5]) -> Case {
    let named: Vec<_> = DIMS.into_iter().zip(dims).collect();
    Case::new(&named)
}

fn dims(case: &Case) -> [usize; 5] {
    DIMS.map(|d| case.get(d))
}

/// The same computation as spatial attention: a batch of pixels with frames as rows.
fn as_attention(case: &Case) -> Case {
    let [b, f, n, h, d] = dims(case);
    Case::new(&[("B", b * n), ("Bkv", b * n), ("M", f), ("L", f), ("h", h), ("D", d), ("causal", 0)])
}

/// (B*F, N, C) -> (B*N, F, C), or back if `back`.
fn swap<T: Copy + Default>(case: &Case, x: &[T], back: bool) -> Vec<T> {
    let [b, f, n, h, d] = dims(case);
    let (rows, columns) = if back { (n, f) } else { (f, n) };
    let c = h * d;
    let mut out = vec![T::default(); x.len()];
    for (i, x) in x.chunks_exact(c).enumerate().take(b * f * n) {
        let (video, row, column) = (i / (rows * columns), i / columns % rows, i % columns);
        out[((video * columns + column) * rows + row) * c..][..c].copy_from_slice(x);
    }
    out
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [[1, 1, 1, 1, 1], [2, 3, 5, 2, 3], [1, 16, 3, 2, 40], [1, 9, 2, 1, 17], [1, 32, 9, 1, 8]].map(case).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        [[1, 16, 1024, 8, 40], [1, 16, 256, 8, 80], [1, 16, 64, 8, 160], [1, 16, 16, 8, 160]].map(case).into()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let [b, f, n, h, d] = dims(case);
        ["q", "k", "v"].map(|name| Input::new(name, [b * f, n, h * d])).into()
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let inputs: Vec<_> = inputs.iter().map(|x| swap(case, x, false)).collect();
        attention::Spec.reference(&as_attention(case), &inputs).iter().map(|x| swap(case, x, true)).collect()
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [inputs, grads] = [inputs, grads].map(|all| all.iter().map(|x| swap(case, x, false)).collect::<Vec<_>>());
        let found = attention::Spec.reference_backward(&as_attention(case), &inputs, &grads);
        found.iter().map(|x| swap(case, x, true)).collect()
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], &inputs[1], &inputs[2], case.get("F"), case.get("h"))?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Attention
    }

    fn flops(&self, case: &Case) -> u64 {
        let [b, f, n, h, d] = dims(case);
        (4 * b * n * h * f * f * d) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        dims(case).iter().product()
    }
}

//! A sum: `y = a + b`.
//!
//! `da = db = dy`.

use multiversion::multiversion;

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::parts::BLOCK;
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "add";

/// `y = a + b`.
///
/// # Shapes
/// a and b alike; result as a.
///
/// # Errors
/// [`Error::Shape`] if the operands differ in shape.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape(NAME, format!("{} plus {}", a.shape(), b.shape())));
    }
    let mut y = Tensor::empty(a.device(), a.shape());
    match a.device() {
        Device::Cpu(cpu) => {
            let (a, b) = (a.host(), b.host());
            cpu.chunks_mut(y.host_mut(), BLOCK, |i, y| {
                let at = i * BLOCK..i * BLOCK + y.len();
                sum(y, &a[at.clone()], &b[at]);
            });
        }
    }
    Ok(y)
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn sum(y: &mut [f32], a: &[f32], b: &[f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}

struct AddNode {
    a: Option<Id>,
    b: Option<Id>,
    y: Id,
}

impl Node for AddNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.add(self.a, || Ok(dy.clone()))?;
        grads.add(self.b, || Ok(dy))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    let y = forward(a.tensor(), b.tensor())?;
    Ok(tape.record(y, &[a, b], |y| AddNode { a: a.id(), b: b.id(), y }))
}

/// The specification.
pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [1, 7, 16, 1000, BLOCK + 3].map(|n| Case::new(&[("N", n)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        [16 * 1024 * 320, 16 * 64 * 1280].map(|n| Case::new(&[("N", n)])).into()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        ["a", "b"].map(|name| Input::new(name, [case.get("N")])).into()
    }

    fn reference(&self, _case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect()]
    }

    fn reference_backward(&self, _case: &Case, _inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![grads[0].clone(), grads[0].clone()]
    }

    fn run(&self, _case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], &inputs[1])?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        case.get("N") as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("N")
    }
}

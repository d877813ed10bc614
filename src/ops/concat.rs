//! Channels of one tensor after those of another: `y = [a | b]`.
//!
//! `da` and `db` are the two parts of `dy`.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Shape, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "concat";

/// Rows copied by one task.
const ROWS: usize = 16;

/// `y = [a | b]` along the last dimension.
///
/// # Shapes
/// a (.., C1), b (.., C2); result (.., C1 + C2).
///
/// # Errors
/// [`Error::Shape`] if the operands differ in any dimension but the last.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (left, right) = (a.shape().last(), b.shape().last());
    if a.shape().len() != b.shape().len() || a.shape().is_empty() || a.shape().with_last(right) != b.shape() {
        return Err(Error::shape(NAME, format!("{} beside {}", a.shape(), b.shape())));
    }
    let width = left + right;
    let mut y = Tensor::empty(a.device(), a.shape().with_last(width));
    match a.device() {
        Device::Cpu(cpu) => {
            let (a, b) = (a.host(), b.host());
            cpu.chunks_mut(y.host_mut(), ROWS * width, |i, y| {
                for (r, y) in y.chunks_exact_mut(width).enumerate() {
                    let row = i * ROWS + r;
                    y[..left].copy_from_slice(&a[row * left..][..left]);
                    y[left..].copy_from_slice(&b[row * right..][..right]);
                }
            });
        }
    }
    Ok(y)
}

/// The `width` channels of `dy` from `start` on: the gradient of one operand.
///
/// # Shapes
/// dy (.., C); result (.., width).
///
/// # Errors
/// [`Error::Shape`] if `dy` has too few channels.
pub fn backward(dy: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    let all = dy.shape().last();
    if dy.shape().is_empty() || start + width > all {
        return Err(Error::shape(NAME, format!("channels {start}..{} of dy {}", start + width, dy.shape())));
    }
    let mut dx = Tensor::empty(dy.device(), dy.shape().with_last(width));
    match dy.device() {
        Device::Cpu(cpu) => {
            let dy = dy.host();
            cpu.chunks_mut(dx.host_mut(), ROWS * width, |i, dx| {
                for (r, dx) in dx.chunks_exact_mut(width).enumerate() {
                    dx.copy_from_slice(&dy[(i * ROWS + r) * all + start..][..width]);
                }
            });
        }
    }
    Ok(dx)
}

struct ConcatNode {
    a: Option<Id>,
    b: Option<Id>,
    y: Id,
    out: Shape,
    /// C1
    left: usize,
}

impl Node for ConcatNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        let dy = dy.reshape(self.out)?;
        grads.add(self.a, || backward(&dy, 0, self.left))?;
        grads.add(self.b, || backward(&dy, self.left, self.out.last() - self.left))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    let y = forward(a.tensor(), b.tensor())?;
    let (out, left) = (y.shape(), a.tensor().shape().last());
    Ok(tape.record(y, &[a, b], |y| ConcatNode { a: a.id(), b: b.id(), y, out, left }))
}

/// The specification.
pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case = |m, c1, c2| Case::new(&[("M", m), ("C1", c1), ("C2", c2)]);
        vec![case(1, 1, 1), case(5, 3, 7), case(33, 16, 8)]
    }

    fn real_cases(&self) -> Vec<Case> {
        let case = |m, c1, c2| Case::new(&[("M", m), ("C1", c1), ("C2", c2)]);
        vec![case(16384, 320, 320), case(256, 1280, 1280)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let m = case.get("M");
        vec![Input::new("a", [m, case.get("C1")]), Input::new("b", [m, case.get("C2")])]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let rows = inputs[0].chunks(case.get("C1")).zip(inputs[1].chunks(case.get("C2")));
        vec![rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect()]
    }

    fn reference_backward(&self, case: &Case, _inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (left, width) = (case.get("C1"), case.get("C1") + case.get("C2"));
        let part = |keep: fn(usize, usize) -> bool| {
            let kept = grads[0].iter().enumerate().filter(|(i, _)| keep(i % width, left));
            kept.map(|(_, v)| *v).collect()
        };
        vec![part(|column, left| column < left), part(|column, left| column >= left)]
    }

    fn run(&self, _case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], &inputs[1])?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Exact
    }

    fn flops(&self, _case: &Case) -> u64 {
        0
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * (case.get("C1") + case.get("C2"))
    }
}

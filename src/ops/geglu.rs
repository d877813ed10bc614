//! The gated activation of the feed-forward layers: with `x = [u | v]`, `y = u gelu(v)`.
//!
//! With P, p distribution and density of the standard normal, gelu(v) = v P(v), so
//! `du = dy gelu(v)` and `dv = dy u (P(v) + v p(v))`.

use multiversion::multiversion;

use super::activation::{gelu, reference};
use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::math::normal;
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "geglu";

/// Rows by one task.
const ROWS: usize = 8;

/// `y = x[.., ..C] gelu(x[.., C..])`.
///
/// # Shapes
/// x (.., 2C); result (.., C).
///
/// # Errors
/// [`Error::Shape`] if the last dimension is odd.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let wide = x.shape().last();
    if x.shape().is_empty() || !wide.is_multiple_of(2) {
        return Err(Error::shape(NAME, format!("x {} should have an even number of channels", x.shape())));
    }
    let c = wide / 2;
    let mut y = Tensor::empty(x.device(), x.shape().with_last(c));
    match x.device() {
        Device::Cpu(cpu) => {
            let x = x.host();
            cpu.chunks_mut(y.host_mut(), ROWS * c, |i, y| cpu::forward(y, &x[i * ROWS * wide..][..2 * y.len()], c));
        }
    }
    Ok(y)
}

/// `dx = [dy gelu(v) | dy u gelu'(v)]`.
///
/// # Shapes
/// dy (.., C), x (.., 2C); result as x.
///
/// # Errors
/// [`Error::Shape`] unless dy has half the numbers of x.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    if 2 * dy.shape().count() != x.shape().count() {
        return Err(Error::shape(NAME, format!("dy {} for x {}", dy.shape(), x.shape())));
    }
    let wide = x.shape().last();
    let mut dx = Tensor::empty(x.device(), x.shape());
    match x.device() {
        Device::Cpu(cpu) => {
            let (x, dy) = (x.host(), dy.host());
            cpu.chunks_mut(dx.host_mut(), ROWS * wide, |i, dx| {
                let at = i * ROWS * wide;
                cpu::backward(dx, &dy[at / 2..][..dx.len() / 2], &x[at..][..dx.len()], wide / 2);
            });
        }
    }
    Ok(dx)
}

mod cpu {
    use super::*;

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn forward(y: &mut [f32], x: &[f32], c: usize) {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(2 * c)) {
            let (u, v) = x.split_at(c);
            for ((y, u), &v) in y.iter_mut().zip(u).zip(v) {
                *y = u * gelu(v);
            }
        }
    }

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], c: usize) {
        for ((dx, dy), x) in dx.chunks_exact_mut(2 * c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(2 * c)) {
            let ((du, dv), (u, v)) = (dx.split_at_mut(c), x.split_at(c));
            for ((((du, dv), dy), u), &v) in du.iter_mut().zip(dv).zip(dy).zip(u).zip(v) {
                let (cdf, density) = normal(v);
                *du = dy * (v * cdf);
                *dv = dy * u * v.mul_add(density, cdf);
            }
        }
    }
}

struct GegluNode {
    x: Option<Id>,
    y: Id,
    saved: Tensor,
}

impl Node for GegluNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.saved.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.add(self.x, || backward(&dy, &self.saved))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, x: &Var) -> Result<Var> {
    let y = forward(x.tensor())?;
    Ok(tape.record(y, &[x], |y| GegluNode { x: x.id(), y, saved: x.tensor().clone() }))
}

/// The specification.
pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [(1, 1), (3, 5), (9, 16), (17, 33)].map(|(m, c)| Case::new(&[("M", m), ("C", c)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        [(16384, 1280), (1024, 5120)].map(|(m, c)| Case::new(&[("M", m), ("C", c)])).into()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        vec![Input::new("x", [case.get("M"), 2 * case.get("C")]).scaled(1.5)]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = case.get("C");
        let row = |x: &[f64]| (0..c).map(|i| x[i] * x[c + i] * reference::normal_cdf(x[c + i])).collect::<Vec<_>>();
        vec![inputs[0].chunks(2 * c).flat_map(row).collect()]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = case.get("C");
        let mut dx = Vec::new();
        for (x, dy) in inputs[0].chunks(2 * c).zip(grads[0].chunks(c)) {
            let (u, v) = x.split_at(c);
            dx.extend(dy.iter().zip(v).map(|(dy, &v)| dy * v * reference::normal_cdf(v)));
            let slope = |v| reference::normal_cdf(v) + v * reference::normal_density(v);
            dx.extend(dy.iter().zip(u).zip(v).map(|((dy, u), &v)| dy * u * slope(v)));
        }
        vec![dx]
    }

    fn run(&self, _case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0])?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        26 * (case.get("M") * case.get("C")) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * case.get("C")
    }
}

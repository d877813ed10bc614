//! Activations, with s the logistic function and P, p distribution and density of the standard normal:
//!
//! - SiLU `y = x s(x)`, `dx = dy s(x) (1 + x (1 - s(x)))`;
//! - GELU `y = x P(x)`, `dx = dy (P(x) + x p(x))`;
//! - quick GELU `y = x s(a x)` with a = 1.702, `dx = dy s(ax) (1 + a x (1 - s(ax)))`.
//!
//! All use `s' = s (1 - s)` and `P' = p`.

use multiversion::multiversion;

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::math::{logistic, normal, sigmoid};
use crate::device::cpu::parts::BLOCK;
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "activation";

/// Which activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x s(x)`
    Silu,
    /// `x P(x)`, by the error function
    Gelu,
    /// `x s(1.702 x)`, as CLIP's text encoder has it
    QuickGelu,
}

const QUICK: f32 = 1.702;

/// `y` of the chosen activation.
///
/// # Shapes
/// Any; result as x.
pub fn forward(x: &Tensor, kind: Activation) -> Tensor {
    let mut y = Tensor::empty(x.device(), x.shape());
    match x.device() {
        Device::Cpu(cpu) => {
            let x = x.host();
            cpu.chunks_mut(y.host_mut(), BLOCK, |i, y| cpu::forward(y, &x[i * BLOCK..][..y.len()], kind));
        }
    }
    y
}

/// `dx`, written over `dy`.
///
/// # Shapes
/// dy and result as x.
///
/// # Errors
/// [`Error::Shape`] if dy and x differ in size.
pub fn backward(mut dy: Tensor, x: &Tensor, kind: Activation) -> Result<Tensor> {
    if dy.shape().count() != x.shape().count() {
        return Err(Error::shape(NAME, format!("dy {} for x {}", dy.shape(), x.shape())));
    }
    match x.device() {
        Device::Cpu(cpu) => {
            let x = x.host();
            cpu.chunks_mut(dy.host_mut(), BLOCK, |i, dy| cpu::backward(dy, &x[i * BLOCK..][..dy.len()], kind));
        }
    }
    Ok(dy)
}

/// SiLU of one number.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Derivative of SiLU.
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let (s, rest) = logistic(x);
    s * x.mul_add(rest, 1.0)
}

/// GELU of one number.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// Derivative of GELU.
#[inline(always)]
pub(super) fn gelu_slope(x: f32) -> f32 {
    let (cdf, density) = normal(x);
    x.mul_add(density, cdf)
}

mod cpu {
    use super::*;

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn forward(y: &mut [f32], x: &[f32], kind: Activation) {
        let pairs = y.iter_mut().zip(x);
        match kind {
            Activation::Silu => pairs.for_each(|(y, &x)| *y = silu(x)),
            Activation::Gelu => pairs.for_each(|(y, &x)| *y = gelu(x)),
            Activation::QuickGelu => pairs.for_each(|(y, &x)| *y = x * sigmoid(QUICK * x)),
        }
    }

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn backward(dy: &mut [f32], x: &[f32], kind: Activation) {
        let pairs = dy.iter_mut().zip(x);
        match kind {
            Activation::Silu => pairs.for_each(|(dy, &x)| *dy *= silu_slope(x)),
            Activation::Gelu => pairs.for_each(|(dy, &x)| *dy *= gelu_slope(x)),
            Activation::QuickGelu => pairs.for_each(|(dy, &x)| *dy *= silu_slope(QUICK * x)),
        }
    }
}

struct ActivationNode {
    x: Option<Id>,
    y: Id,
    saved: Tensor,
    kind: Activation,
}

impl Node for ActivationNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.saved.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.add(self.x, || backward(dy, &self.saved, self.kind))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// None on the CPU.
pub fn apply(tape: &mut Tape, x: &Var, kind: Activation) -> Result<Var> {
    let y = forward(x.tensor(), kind);
    Ok(tape.record(y, &[x], |y| ActivationNode { x: x.id(), y, saved: x.tensor().clone(), kind }))
}

/// The specification.
pub struct Spec;

fn kind(case: &Case) -> Activation {
    [Activation::Silu, Activation::Gelu, Activation::QuickGelu][case.get("kind")]
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case = |(kind, n)| Case::new(&[("N", n), ("kind", kind)]);
        [0, 1, 2].iter().flat_map(|&kind| [1, 37, BLOCK + 5].map(|n| case((kind, n)))).collect()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("N", 1280), ("kind", 0)]), Case::new(&[("N", 77 * 3072), ("kind", 2)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        vec![Input::new("x", [case.get("N")]).scaled(2.0)]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let a = f64::from(QUICK);
        vec![
            inputs[0]
                .iter()
                .map(|&x| match kind(case) {
                    Activation::Silu => x * s(x),
                    Activation::Gelu => x * reference::normal_cdf(x),
                    Activation::QuickGelu => x * s(a * x),
                })
                .collect(),
        ]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let slope = |x: f64| {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        };
        let a = f64::from(QUICK);
        let dx = |(&x, dy): (&f64, &f64)| {
            dy * match kind(case) {
                Activation::Silu => slope(x),
                Activation::Gelu => reference::normal_cdf(x) + x * reference::normal_density(x),
                Activation::QuickGelu => slope(a * x),
            }
        };
        vec![inputs[0].iter().zip(&grads[0]).map(dx).collect()]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], kind(case))?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        20 * case.get("N") as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("N")
    }
}

/// The normal distribution in f64.
pub(super) mod reference {
    /// Its density.
    pub(crate) fn normal_density(x: f64) -> f64 {
        (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    }

    /// Its distribution function: 1/2 + p(x) (x + x^3/3 + x^5/15 + ...), and the continued fraction
    /// p(x) / (x + 1/(x + 2/(x + ...))) of the tail where that series would cancel.
    pub(crate) fn normal_cdf(x: f64) -> f64 {
        if x.abs() < 5.0 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 2.0;
                term *= x * x / n;
                sum += term;
            }
            return 0.5 + normal_density(x) * sum;
        }
        let fraction = (1..100).rev().fold(x.abs(), |below, n| x.abs() + f64::from(n) / below);
        let tail = normal_density(x) / fraction;
        if x > 0.0 { 1.0 - tail } else { tail }
    }
}

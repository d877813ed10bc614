//! The forward process: `x_t = sqrt(a) x_0 + sqrt(1 - a) e` with `a` the share of signal power at time t.
//! Latents are few, so every element is computed in f64 and rounded once.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "q_sample";

/// Noised latents.
///
/// # Shapes
/// x0, noise and result alike. `alpha_bar` is unitless, 0 to 1.
///
/// # Errors
/// [`Error::Shape`] if latents and noise differ in size.
pub fn forward(x0: &Tensor, noise: &Tensor, alpha_bar: f64) -> Result<Tensor> {
    if x0.shape() != noise.shape() {
        return Err(Error::shape(NAME, format!("noise {} for latents {}", noise.shape(), x0.shape())));
    }
    let (keep, add) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
    let mut y = Tensor::empty(x0.device(), x0.shape());
    match x0.device() {
        Device::Cpu(_) => {
            for (y, (&x, &e)) in y.host_mut().iter_mut().zip(x0.host().iter().zip(noise.host())) {
                *y = (keep * f64::from(x) + add * f64::from(e)) as f32;
            }
        }
    }
    Ok(y)
}

/// The specification.
pub struct Spec;

const ALPHA_BAR: f64 = 0.28835571;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [1, 63, 4097].map(|n| Case::new(&[("N", n)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("N", 16 * 32 * 32 * 4)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        ["x0", "noise"].map(|name| Input::frozen(name, [case.get("N")])).into()
    }

    fn reference(&self, _case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mix = |(x, e): (&f64, &f64)| ALPHA_BAR.sqrt() * x + (1.0 - ALPHA_BAR).sqrt() * e;
        vec![inputs[0].iter().zip(&inputs[1]).map(mix).collect()]
    }

    fn run(&self, _case: &Case, _tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![forward(inputs[0].tensor(), inputs[1].tensor(), ALPHA_BAR)?.into()])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        3 * case.get("N") as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("N")
    }
}

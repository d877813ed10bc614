//! Classifier-free guidance and one deterministic DDIM step (eta 0) in one:
//!
//! `e = e_u + w (e_c - e_u)`, `x_0 = (x - sqrt(1 - a) e) / sqrt(a)`, `x' = sqrt(a') x_0 + sqrt(1 - a') e`.
//! Latents are few, so every element is computed in f64 and rounded once.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "ddim_step";

/// The latents one step less noisy.
///
/// # Shapes
/// x, cond, uncond and result alike; without `uncond` the prediction is `cond` alone. `alpha_bar` is the share of
/// signal power in `x`, `alpha_bar_prev` that of the result.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ.
pub fn forward(
    x: &Tensor,
    cond: &Tensor,
    uncond: Option<&Tensor>,
    guidance: f32,
    alpha_bar: f64,
    alpha_bar_prev: f64,
) -> Result<Tensor> {
    if let Some(other) = [Some(cond), uncond].into_iter().flatten().find(|t| t.shape() != x.shape()) {
        return Err(Error::shape(NAME, format!("prediction {} for latents {}", other.shape(), x.shape())));
    }
    let step = Step::new(guidance, alpha_bar, alpha_bar_prev);
    let mut y = Tensor::empty(x.device(), x.shape());
    match x.device() {
        Device::Cpu(_) => {
            let (x, cond, uncond) = (x.host(), cond.host(), uncond.unwrap_or(cond).host());
            for (i, y) in y.host_mut().iter_mut().enumerate() {
                *y = step.apply(x[i].into(), cond[i].into(), uncond[i].into()) as f32;
            }
        }
    }
    Ok(y)
}

struct Step {
    guidance: f64,
    signal: f64,
    noise: f64,
    signal_prev: f64,
    noise_prev: f64,
}

impl Step {
    fn new(guidance: f32, alpha_bar: f64, alpha_bar_prev: f64) -> Self {
        Step {
            guidance: guidance.into(),
            signal: alpha_bar.sqrt(),
            noise: (1.0 - alpha_bar).sqrt(),
            signal_prev: alpha_bar_prev.sqrt(),
            noise_prev: (1.0 - alpha_bar_prev).sqrt(),
        }
    }

    fn apply(&self, x: f64, cond: f64, uncond: f64) -> f64 {
        let e = uncond + self.guidance * (cond - uncond);
        let x0 = (x - self.noise * e) / self.signal;
        self.signal_prev * x0 + self.noise_prev * e
    }
}

/// The specification.
pub struct Spec;

const FROM: f64 = 0.28835571;
const TO: f64 = 0.67117938;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [1, 63, 4097].iter().flat_map(|&n| [0, 1].map(|cfg| Case::new(&[("N", n), ("cfg", cfg)]))).collect()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("N", 16 * 32 * 32 * 4), ("cfg", 1)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        ["x", "cond", "uncond"].map(|name| Input::frozen(name, [case.get("N")])).into()
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [x, cond, uncond] = inputs else { unreachable!("inputs() lists three operands") };
        let next = |i: usize| {
            let e = if case.on("cfg") { 9.0 * cond[i] - 8.0 * uncond[i] } else { cond[i] };
            (TO / FROM).sqrt() * (x[i] - (1.0 - FROM).sqrt() * e) + (1.0 - TO).sqrt() * e
        };
        vec![(0..x.len()).map(next).collect()]
    }

    fn run(&self, case: &Case, _tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let uncond = case.on("cfg").then(|| inputs[2].tensor());
        Ok(vec![forward(inputs[0].tensor(), inputs[1].tensor(), uncond, 9.0, FROM, TO)?.into()])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        8 * case.get("N") as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("N")
    }
}

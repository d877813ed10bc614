//! Lion (Chen et al., 2023), as lion-pytorch has it: `p *= 1 - lr wd`, `c = b1 m + (1 - b1) g`,
//! `p -= lr sign(c)`, `m = b2 m + (1 - b2) g`, with `sign(0) = 0`.
//!
//! Every element is `c = fma(1 - b1, g, b1 * m)`, `p = fma(-lr, fma(wd, p, sign c), p)` and
//! `m = fma(1 - b2, g, b2 * m)`, with coefficients rounded to f32 from f64: the same bits on every device.
//! The decay is not a factor of its own because `1 - lr wd` rounds away: at test-time training's 1e-7 it would
//! decay by 1.2e-7, and drift by half a step in twenty.

use multiversion::multiversion;

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::parts::BLOCK;
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "lion";

/// Settings of the optimizer, unitless.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// Most that a step moves an element.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
}

/// One step: updates `param` and `momentum` in place.
///
/// # Shapes
/// All alike.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ.
pub fn step(param: &mut Tensor, grad: &Tensor, momentum: &mut Tensor, lion: Lion) -> Result<()> {
    let count = param.shape().count();
    if grad.shape().count() != count || momentum.shape().count() != count {
        let detail = format!("gradient {} and momentum {} for {}", grad.shape(), momentum.shape(), param.shape());
        return Err(Error::shape(NAME, detail));
    }
    match &param.device().clone() {
        Device::Cpu(cpu) => {
            let grad = grad.host();
            cpu.zip_chunks_mut((param.host_mut(), BLOCK), (momentum.host_mut(), BLOCK), |i, p, m| {
                cpu::step(p, &grad[i * BLOCK..][..p.len()], m, lion);
            });
        }
    }
    Ok(())
}

mod cpu {
    use super::*;

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn step(p: &mut [f32], g: &[f32], m: &mut [f32], lion: Lion) {
        let Lion { lr, beta1, beta2, weight_decay } = lion;
        let (b1, rest1, b2, rest2) = (beta1 as f32, (1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
        let (lr, decay) = (lr as f32, weight_decay as f32);
        for ((p, &g), m) in p.iter_mut().zip(g).zip(m) {
            let c = rest1.mul_add(g, b1 * *m);
            // Neither: zero, or a NaN that should show.
            let sign = if c > 0.0 {
                1.0
            } else if c < 0.0 {
                -1.0
            } else {
                c
            };
            *p = (-lr).mul_add(decay.mul_add(*p, sign), *p);
            *m = rest2.mul_add(g, b2 * *m);
        }
    }
}

/// The specification.
pub struct Spec;

const SETTINGS: Lion = Lion { lr: 1e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        [8, 63, BLOCK + 9].map(|n| Case::new(&[("N", n)])).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![Case::new(&[("N", 12_124_160)])]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        ["param", "grad", "momentum"].map(|name| Input::frozen(name, [case.get("N")])).into()
    }

    fn reference(&self, _case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [p, g, m] = inputs else { unreachable!("inputs() lists three operands") };
        let rounded = |x: f64| f64::from(x as f32); // coefficients are f32, as the header says
        let Lion { lr, beta1, beta2, weight_decay } = SETTINGS;
        let sign = |i: usize| (rounded(beta1) * m[i] + rounded(1.0 - beta1) * g[i]).signum();
        let moved = |i: usize| p[i] - rounded(lr) * (rounded(weight_decay) * p[i] + sign(i));
        let followed = |i: usize| rounded(beta2) * m[i] + rounded(1.0 - beta2) * g[i];
        vec![(0..p.len()).map(moved).collect(), (0..p.len()).map(followed).collect()]
    }

    fn run(&self, _case: &Case, _tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let (mut p, mut m) = (inputs[0].tensor().clone(), inputs[2].tensor().clone());
        step(&mut p, inputs[1].tensor(), &mut m, SETTINGS)?;
        Ok(vec![p.into(), m.into()])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, case: &Case) -> u64 {
        8 * case.get("N") as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        2 * case.get("N")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_rate_and_zero_gradients_only_decay() -> Result<()> {
        let device = Device::cpu(Some(1))?;
        let mut p = Tensor::from_slice(&device, [3], &[1.0, -2.0, 0.5])?;
        let (g, mut m) = (Tensor::from_slice(&device, [3], &[3.0, -1e-9, 0.0])?, Tensor::zeros(&device, [3]));
        step(&mut p, &g, &mut m, SETTINGS)?;
        let want = [0.9999 - 1e-3, -1.9998 + 1e-3, 0.49995];
        for (got, want) in p.to_vec().iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{got} is not {want}");
        }
        assert!((m.to_vec()[0] - 0.03).abs() < 1e-8 && m.to_vec()[2] == 0.0);
        assert!(step(&mut p, &Tensor::zeros(&device, [2]), &mut m, SETTINGS).is_err());
        Ok(())
    }
}

use super::{GroupNorm, NAME, apply};
use crate::ops::activation::{self, Activation};
use crate::ops::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Result, Tape, Var};

/// The specification.
pub struct Spec;

fn norm(case: &Case) -> GroupNorm {
    GroupNorm { groups: case.get("G"), eps: 1e-5, images_per_group: case.get("per"), silu: case.on("silu") }
}

fn case([b, n, c, g]: [usize; 4], per: usize, silu: usize) -> Case {
    Case::new(&[("B", b), ("N", n), ("C", c), ("G", g), ("per", per), ("silu", silu)])
}

/// Indices of every set of numbers that share statistics.
fn sets(case: &Case) -> Vec<Vec<usize>> {
    let [b, n, c, g, per] = ["B", "N", "C", "G", "per"].map(|d| case.get(d));
    let mut sets = vec![Vec::new(); b / per * g];
    for i in 0..b * n * c {
        sets[i / (n * c) / per * g + i % c / (c / g)].push(i);
    }
    sets
}

/// (h, rstd) of every number.
fn normalised(case: &Case, x: &[f64]) -> Vec<(f64, f64)> {
    let mut out = vec![(0.0, 0.0); x.len()];
    for set in sets(case) {
        let n = set.len() as f64;
        let mean = set.iter().map(|&i| x[i]).sum::<f64>() / n;
        let var = set.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (var + norm(case).eps).sqrt();
        set.iter().for_each(|&i| out[i] = ((x[i] - mean) * rstd, rstd));
    }
    out
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case([1, 6, 1, 1], 1, 0),
            case([2, 5, 6, 3], 1, 1),
            case([4, 7, 20, 2], 2, 1),
            case([3, 70, 40, 4], 3, 0),
            case([2, 130, 48, 16], 1, 1),
        ]
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![
            case([16, 1024, 320, 32], 1, 1),
            case([16, 1024, 320, 32], 16, 0),
            case([16, 64, 2560, 32], 1, 1),
            case([1, 65536, 128, 32], 1, 1),
        ]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (b, n, c) = (case.get("B"), case.get("N"), case.get("C"));
        vec![
            Input::new("x", [b, n, c]).shifted(3.0),
            Input::frozen("gamma", [c]).scaled(0.2).shifted(1.0),
            Input::frozen("beta", [c]),
        ]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [x, gamma, beta] = inputs else { unreachable!("inputs() lists three operands") };
        let channel = |i: usize| i % gamma.len();
        let u = |(i, (h, _)): (usize, (f64, f64))| gamma[channel(i)] * h + beta[channel(i)];
        let silu = |u: f64| if case.on("silu") { u / (1.0 + (-u).exp()) } else { u };
        vec![normalised(case, x).into_iter().enumerate().map(u).map(silu).collect()]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [x, gamma, beta] = inputs else { unreachable!("inputs() lists three operands") };
        let h = normalised(case, x);
        let dh = |i: usize| {
            let channel = i % gamma.len();
            let u = gamma[channel] * h[i].0 + beta[channel];
            let s = 1.0 / (1.0 + (-u).exp());
            let slope = if case.on("silu") { s * (1.0 + u * (1.0 - s)) } else { 1.0 };
            gamma[channel] * grads[0][i] * slope
        };
        let mut dx = vec![0.0; x.len()];
        for set in sets(case) {
            let n = set.len() as f64;
            let mean = set.iter().map(|&i| dh(i)).sum::<f64>() / n;
            let along = set.iter().map(|&i| dh(i) * h[i].0).sum::<f64>() / n;
            set.iter().for_each(|&i| dx[i] = h[i].1 * (dh(i) - mean - h[i].0 * along));
        }
        vec![dx, Vec::new(), Vec::new()]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], inputs[1].tensor(), inputs[2].tensor(), norm(case))?])
    }

    fn unfused(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Option<Vec<Var>>> {
        if !case.on("silu") {
            return Ok(None);
        }
        let plain = GroupNorm { silu: false, ..norm(case) };
        let u = apply(tape, &inputs[0], inputs[1].tensor(), inputs[2].tensor(), plain)?;
        Ok(Some(vec![activation::apply(tape, &u, Activation::Silu)?]))
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Norm
    }

    fn flops(&self, case: &Case) -> u64 {
        8 * self.output_count(case) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("B") * case.get("N") * case.get("C")
    }
}

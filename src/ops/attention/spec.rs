use super::{Mask, NAME, apply};
use crate::ops::spec::{Accuracy, Case, Input, OpSpec};
use crate::{Result, Tape, Var};

/// The specification.
pub struct Spec;

fn case([b, kv, m, l]: [usize; 4], h: usize, d: usize, causal: usize) -> Case {
    Case::new(&[("B", b), ("Bkv", kv), ("M", m), ("L", l), ("h", h), ("D", d), ("causal", causal)])
}

fn mask(case: &Case) -> Mask {
    if case.on("causal") { Mask::Causal } else { Mask::None }
}

/// Offsets of the head vectors of one query and of the keys it sees.
fn rows(case: &Case) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let [b, kv, m, l, h, d] = ["B", "Bkv", "M", "L", "h", "D"].map(|n| case.get(n));
    let causal = case.on("causal");
    (0..b * m * h).map(move |at| {
        let (row, head) = (at / h, at % h);
        let first = row / m / (b / kv) * l;
        let seen = if causal { row % m + 1 } else { l };
        (row * h * d + head * d, (first..first + seen).map(|key| key * h * d + head * d).collect())
    })
}

fn probabilities(q: &[f64], k: &[f64], at: usize, keys: &[usize], d: usize) -> Vec<f64> {
    let scores: Vec<f64> = keys.iter().map(|&key| dot(q, k, at, key, d) / (d as f64).sqrt()).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    scores.iter().map(|s| (s - max).exp() / sum).collect()
}

fn dot(x: &[f64], y: &[f64], at_x: usize, at_y: usize, d: usize) -> f64 {
    (0..d).map(|i| x[at_x + i] * y[at_y + i]).sum()
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case([1, 1, 1, 1], 1, 1, 0),
            case([2, 2, 5, 7], 3, 4, 0),
            case([4, 2, 9, 33], 2, 5, 0),
            case([2, 2, 37, 37], 2, 8, 1),
            case([1, 1, 600, 77], 1, 40, 0),
        ]
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![
            case([16, 16, 1024, 1024], 8, 40, 0),
            case([16, 1, 1024, 77], 8, 40, 0),
            case([16, 16, 256, 256], 8, 80, 0),
            case([16, 16, 64, 64], 8, 160, 0),
            case([1, 1, 1024, 1024], 1, 512, 0),
            case([1, 1, 77, 77], 12, 64, 1),
        ]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let [b, kv, m, l, h, d] = ["B", "Bkv", "M", "L", "h", "D"].map(|n| case.get(n));
        vec![Input::new("q", [b, m, h * d]), Input::new("k", [kv, l, h * d]), Input::new("v", [kv, l, h * d])]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [q, k, v] = inputs else { unreachable!("inputs() lists three operands") };
        let d = case.get("D");
        let mut out = vec![0.0; q.len()];
        for (at, keys) in rows(case) {
            for (p, key) in probabilities(q, k, at, &keys, d).into_iter().zip(keys) {
                (0..d).for_each(|i| out[at + i] += p * v[key + i]);
            }
        }
        vec![out]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let ([q, k, v], dout) = (inputs, &grads[0]) else { unreachable!("inputs() lists three operands") };
        let d = case.get("D");
        let scale = 1.0 / (d as f64).sqrt();
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![0.0; x.len()]);
        for (at, keys) in rows(case) {
            let p = probabilities(q, k, at, &keys, d);
            let dp: Vec<f64> = keys.iter().map(|&key| dot(dout, v, at, key, d)).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((p, dp), key) in p.iter().zip(dp).zip(keys) {
                let ds = p * (dp - mean) * scale;
                for i in 0..d {
                    dq[at + i] += ds * k[key + i];
                    dk[key + i] += ds * q[at + i];
                    dv[key + i] += p * dout[at + i];
                }
            }
        }
        vec![dq, dk, dv]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], &inputs[1], &inputs[2], case.get("h"), mask(case))?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Attention
    }

    fn flops(&self, case: &Case) -> u64 {
        let [b, m, l, h, d] = ["B", "M", "L", "h", "D"].map(|n| case.get(n));
        let all = 4 * b * m * l * h * d;
        (if case.on("causal") { all / 2 } else { all }) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        ["B", "M", "h", "D"].map(|n| case.get(n)).iter().product()
    }
}

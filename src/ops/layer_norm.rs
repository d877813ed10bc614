//! Layer normalisation of every row, with an optional position added after it: `h = (x - mean) rstd` with
//! `rstd = 1 / sqrt(var + eps)` over the C numbers of a row, `y = gamma h + beta + position`.
//!
//! `dh = gamma dy`; with `dmean/dx = 1/C` and `drstd/dx = -rstd^2 h / C`,
//! `dx = rstd (dh - mean(dh) - h mean(dh h))`. gamma, beta and the positions are frozen.

use multiversion::multiversion;

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::math;
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "layer_norm";

/// Rows by one task.
const ROWS: usize = 16;

/// A table of positions; `rows` consecutive rows share an entry, and the table repeats.
#[derive(Clone, Copy)]
pub struct Position<'a> {
    /// (F, C)
    pub table: &'a Tensor,
    /// Row r gets `table[r / rows % F]`
    pub rows: usize,
}

fn check(x: &Tensor, parameters: &[&Tensor], position: Option<Position>) -> Result<()> {
    let c = x.shape().last();
    if x.shape().is_empty() || parameters.iter().any(|p| p.shape().count() != c) {
        let shapes: Vec<_> = parameters.iter().map(|p| p.shape()).collect();
        return Err(Error::shape(NAME, format!("parameters {shapes:?} for x {}", x.shape())));
    }
    match position {
        Some(Position { table, rows }) if rows == 0 || table.shape().last() != c || table.shape().count() == 0 => {
            Err(Error::shape(NAME, format!("positions {} every {rows} rows for x {}", table.shape(), x.shape())))
        }
        _ => Ok(()),
    }
}

/// `y = gamma h + beta + position`.
///
/// # Shapes
/// x (.., C), gamma and beta (C); result as x.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64, position: Option<Position>) -> Result<Tensor> {
    check(x, &[gamma, beta], position)?;
    let c = x.shape().last();
    let mut y = Tensor::empty(x.device(), x.shape());
    match x.device() {
        Device::Cpu(cpu) => {
            let (x, gamma, beta) = (x.host(), gamma.host(), beta.host());
            let position = position.map(|p| (p.table.host(), p.rows));
            cpu.chunks_mut(y.host_mut(), ROWS * c, |i, y| {
                for (r, y) in y.chunks_exact_mut(c).enumerate() {
                    let row = i * ROWS + r;
                    cpu::forward(y, &x[row * c..][..c], gamma, beta, eps);
                    if let Some((table, rows)) = position {
                        math::accumulate(y, &table[row / rows % (table.len() / c) * c..][..c]);
                    }
                }
            });
        }
    }
    Ok(y)
}

/// `dx`, added to `sum` if there is one, else written over `dy`.
///
/// # Shapes
/// dy, x and result (.., C), gamma (C).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(mut dy: Tensor, x: &Tensor, gamma: &Tensor, eps: f64, sum: Option<Tensor>) -> Result<Tensor> {
    check(x, &[gamma], None)?;
    if dy.shape().count() != x.shape().count() {
        return Err(Error::shape(NAME, format!("dy {} for x {}", dy.shape(), x.shape())));
    }
    let c = x.shape().last();
    let mut sum = sum;
    match x.device() {
        Device::Cpu(cpu) => {
            let (x, gamma) = (x.host(), gamma.host());
            let block = |i: usize, dy: &mut [f32]| {
                let x = x[i * ROWS * c..].chunks_exact(c);
                dy.chunks_exact_mut(c).zip(x).for_each(|(dy, x)| cpu::backward(dy, x, gamma, eps));
            };
            match &mut sum {
                None => cpu.chunks_mut(dy.host_mut(), ROWS * c, block),
                Some(sum) => {
                    cpu.zip_chunks_mut((sum.host_mut(), ROWS * c), (dy.host_mut(), ROWS * c), |i, sum, dy| {
                        block(i, dy);
                        math::accumulate(sum, dy);
                    });
                }
            }
        }
    }
    Ok(sum.unwrap_or(dy))
}

mod cpu {
    use multiversion::target::match_target;

    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::device::cpu::lanes::Avx2;
    use crate::device::cpu::lanes::{Lanes, Portable};

    /// Mean, what is missing to the exact mean, and rstd of a row.
    #[inline(always)]
    fn statistics<L: Lanes>(x: &[f32], eps: f64) -> [f32; 3] {
        let n = x.len() as f32;
        let mean = math::sum::<L>(x) / n;
        let [rest, squares] = math::sums::<L, true>(x, x, mean);
        let rest = rest / n;
        let var = f64::from(squares / n) - f64::from(rest).powi(2);
        [mean, rest, (1.0 / (var + eps).sqrt()) as f32]
    }

    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn forward(y: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f64) {
        let [mean, rest, rstd] = match_target! {
            "x86_64+avx2+fma" => statistics::<Avx2>(x, eps),
            _ => statistics::<Portable>(x, eps),
        };
        for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = (x - mean).mul_add(rstd, -rest * rstd).mul_add(*gamma, *beta);
        }
    }

    /// dx over dy.
    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    pub(super) fn backward(dy: &mut [f32], x: &[f32], gamma: &[f32], eps: f64) {
        dy.iter_mut().zip(gamma).for_each(|(dy, gamma)| *dy *= gamma);
        let ([mean, rest, rstd], [first, second]) = match_target! {
            "x86_64+avx2+fma" => row_sums::<Avx2>(dy, x, eps),
            _ => row_sums::<Portable>(dy, x, eps),
        };
        // dx = rstd (dh - first) - b (x - mean - rest)
        let b = rstd * rstd * rstd * second;
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = (*dy - first).mul_add(rstd, -b * (x - mean - rest));
        }
    }

    /// Statistics, and the means of dh and of dh (x - mean).
    #[inline(always)]
    fn row_sums<L: Lanes>(dh: &[f32], x: &[f32], eps: f64) -> ([f32; 3], [f32; 2]) {
        let statistics = statistics::<L>(x, eps);
        let [first, second] = math::sums::<L, false>(dh, x, statistics[0]);
        let n = x.len() as f32;
        (statistics, [first / n, second / n - statistics[1] * (first / n)])
    }
}

struct LayerNormNode {
    x: Option<Id>,
    y: Id,
    saved: Tensor,
    gamma: Tensor,
    eps: f64,
}

impl Node for LayerNormNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.saved.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.update(self.x, |sum| backward(dy, &self.saved, &self.gamma, self.eps, sum))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(
    tape: &mut Tape,
    x: &Var,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    position: Option<Position>,
) -> Result<Var> {
    let y = forward(x.tensor(), gamma, beta, eps, position)?;
    Ok(tape.record(y, &[x], |y| LayerNormNode { x: x.id(), y, saved: x.tensor().clone(), gamma: gamma.clone(), eps }))
}

/// The specification.
pub struct Spec;

const EPS: f64 = 1e-5;

fn case(m: usize, c: usize, frames: usize, rows: usize) -> Case {
    Case::new(&[("M", m), ("C", c), ("F", frames), ("rows", rows)])
}

/// (h, rstd) of every number.
fn normalised(x: &[f64], c: usize) -> Vec<(f64, f64)> {
    let row = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / c as f64;
        let rstd = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64 + EPS).sqrt();
        x.iter().map(|x| ((x - mean) * rstd, rstd)).collect::<Vec<_>>()
    };
    x.chunks(c).flat_map(row).collect()
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        vec![case(1, 6, 1, 0), case(17, 5, 3, 2), case(9, 40, 4, 1), case(33, 320, 2, 5), case(4, 1283, 1, 0)]
    }

    fn real_cases(&self) -> Vec<Case> {
        vec![case(16384, 320, 16, 1024), case(4096, 640, 16, 0), case(1024, 1280, 16, 64), case(77, 768, 1, 0)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (m, c) = (case.get("M"), case.get("C"));
        vec![
            Input::new("x", [m, c]).shifted(2.0),
            Input::frozen("gamma", [c]).scaled(0.2).shifted(1.0),
            Input::frozen("beta", [c]),
            Input::frozen("table", [case.get("F"), c]),
        ]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [x, gamma, beta, table] = inputs else { unreachable!("inputs() lists four operands") };
        let (c, rows) = (case.get("C"), case.get("rows"));
        let y = |(i, (h, _)): (usize, (f64, f64))| {
            let position = match rows {
                0 => 0.0,
                _ => table[i / c / rows % case.get("F") * c + i % c],
            };
            gamma[i % c] * h + beta[i % c] + position
        };
        vec![normalised(x, c).into_iter().enumerate().map(y).collect()]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = case.get("C");
        let h = normalised(&inputs[0], c);
        let mut dx = Vec::new();
        for (dy, h) in grads[0].chunks(c).zip(h.chunks(c)) {
            let dh: Vec<f64> = dy.iter().zip(&inputs[1]).map(|(dy, gamma)| dy * gamma).collect();
            let mean = dh.iter().sum::<f64>() / c as f64;
            let along = dh.iter().zip(h).map(|(dh, h)| dh * h.0).sum::<f64>() / c as f64;
            dx.extend(dh.iter().zip(h).map(|(dh, (h, rstd))| rstd * (dh - mean - h * along)));
        }
        vec![dx, Vec::new(), Vec::new(), Vec::new()]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let [x, gamma, beta, table] = inputs else { unreachable!("inputs() lists four operands") };
        let position = case.on("rows").then(|| Position { table: table.tensor(), rows: case.get("rows") });
        Ok(vec![apply(tape, x, gamma.tensor(), beta.tensor(), EPS, position)?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Norm
    }

    fn flops(&self, case: &Case) -> u64 {
        8 * self.output_count(case) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * case.get("C")
    }
}

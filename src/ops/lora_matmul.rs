//! A frozen linear layer with low-rank adapters: with `u_a = x A_a^T` and a dropout mask `m_a` of zeros and
//! ones, `y = x W^T + b + residual + sum over a of s_a m_a / (1 - p_a) o (u_a B_a^T)`.
//!
//! With `g_a = s_a m_a / (1 - p_a) o dy`, `(M, N)`:
//! `dB_a = g_a^T u_a`; `du_a = g_a B_a`; `dA_a = du_a^T x`; `dx = dy W + sum over a of du_a A_a`;
//! `dresidual = dy`. The mask is a function of (seed, stream, step, element) and drawn again, never stored.

use super::linear::{self, weight};
use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Philox, Result, Shape, Tape, Tensor, Var, Weight};

/// The stem.
pub const NAME: &str = "lora_matmul";

/// A trainable product of two thin matrices beside a frozen one.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// A, (R, K)
    pub down: Var,
    /// B, (N, R)
    pub up: Var,
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

/// Drops element `i` (row-major) of an adapter's `(M, N)` product where `philox.uniform(step, i) < p`, and
/// divides what is left by `1 - p`.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub philox: Philox,
    pub step: u32,
    /// In [0, 1).
    pub p: f32,
}

/// An adapter's tensors and constants.
#[derive(Clone)]
struct Factors {
    down: Tensor,
    up: Tensor,
    scale: f32,
    dropout: Option<Dropout>,
}

impl From<&Adapter> for Factors {
    fn from(a: &Adapter) -> Self {
        Factors { down: a.down.tensor().clone(), up: a.up.tensor().clone(), scale: a.scale, dropout: a.dropout }
    }
}

impl Factors {
    /// Checks that the factors fit a weight of `n` rows and `k` columns.
    fn check(&self, n: usize, k: usize) -> Result<()> {
        let (down, up) = (self.down.shape(), self.up.shape());
        let fits = down.len() == 2 && up.len() == 2 && down[1] == k && up[0] == n && down[0] == up[1];
        if !fits {
            return Err(Error::shape(NAME, format!("{up} @ {down} beside a weight ({n}, {k})")));
        }
        match self.dropout {
            Some(d) if !(0.0..1.0).contains(&d.p) => Err(Error::shape(NAME, format!("dropout {} not in [0, 1)", d.p))),
            _ => Ok(()),
        }
    }
}

/// `y` and `u_a` of every adapter.
fn forward(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    adapters: &[Factors],
) -> Result<(Tensor, Vec<Tensor>)> {
    adapters.iter().try_for_each(|a| a.check(weight.rows(), weight.columns()))?;
    let mut y = linear::forward(x, weight, bias, residual)?;
    let add = |a: &Factors| match x.device() {
        Device::Cpu(cpu) => cpu::add_adapter(cpu, &mut y, x, a),
    };
    let reduced = adapters.iter().map(add).collect();
    Ok((y, reduced))
}

/// Gradients of one adapter; `dx`, if wanted, is added to.
fn backward(
    dx: Option<&mut Tensor>,
    dy: &Tensor,
    x: Option<&Tensor>,
    reduced: Option<&Tensor>,
    adapter: &Factors,
) -> (Option<Tensor>, Option<Tensor>) {
    match dy.device() {
        Device::Cpu(cpu) => cpu::backward(cpu, dx, dy, x, reduced, adapter),
    }
}

mod cpu {
    use multiversion::multiversion;

    use super::{Dropout, Factors};
    use crate::Tensor;
    use crate::device::Cpu;
    use crate::device::cpu::gemm::{Mat, gemm, product};

    fn mat(t: &Tensor) -> Mat<'_> {
        let columns = t.shape().last();
        Mat::new(t.host(), t.shape().rows(), columns, columns)
    }

    /// Rows of one task; a multiple of four, so that its mask starts with a whole block of random numbers.
    const ROWS: usize = 32;

    /// `y += s m / (1 - p) o (u B^T)`; returns `u = x A^T`.
    pub(super) fn add_adapter(cpu: &Cpu, y: &mut Tensor, x: &Tensor, adapter: &Factors) -> Tensor {
        let (m, n, r) = (x.shape().rows(), adapter.up.shape()[0], adapter.up.shape()[1]);
        let mut u = Tensor::empty(x.device(), [m, r]);
        product(cpu, u.host_mut(), 0.0, 1.0, mat(x), mat(&adapter.down).t());
        match adapter.dropout {
            None => product(cpu, y.host_mut(), 1.0, adapter.scale, mat(&u), mat(&adapter.up).t()),
            Some(dropout) => cpu.chunks_mut(y.host_mut(), ROWS * n, |i, y| {
                let rows = y.len() / n;
                let part = Mat::new(&u.host()[i * ROWS * r..], rows, r, r);
                let mut term = cpu.alloc(rows * n);
                gemm(&mut term, n, 0.0, adapter.scale, part, mat(&adapter.up).t());
                mask(&mut term, dropout, i * ROWS * n);
                y.iter_mut().zip(term.iter()).for_each(|(y, t)| *y += t);
            }),
        }
        u
    }

    /// `dA` if `x` is given, `dB` if `u` is; adds `du A` to `dx` if that is given.
    pub(super) fn backward(
        cpu: &Cpu,
        dx: Option<&mut Tensor>,
        dy: &Tensor,
        x: Option<&Tensor>,
        u: Option<&Tensor>,
        adapter: &Factors,
    ) -> (Option<Tensor>, Option<Tensor>) {
        let (n, r) = (adapter.up.shape()[0], adapter.up.shape()[1]);
        let m = dy.shape().count() / n;
        // g = s m / (1 - p) o dy; without dropout the scale moves into the products.
        let masked = adapter.dropout.map(|dropout| {
            let mut g = cpu.alloc(m * n);
            cpu.chunks_mut(&mut g, ROWS * n, |i, g| {
                g.copy_from_slice(&dy.host()[i * ROWS * n..][..g.len()]);
                mask(g, dropout, i * ROWS * n);
            });
            g
        });
        let g = Mat::new(masked.as_deref().unwrap_or(dy.host()), m, n, n);
        let db = u.map(|u| {
            let mut db = Tensor::empty(dy.device(), adapter.up.shape());
            product(cpu, db.host_mut(), 0.0, adapter.scale, g.t(), mat(u));
            db
        });
        if dx.is_none() && x.is_none() {
            return (None, db);
        }
        let mut du = Tensor::empty(dy.device(), [m, r]);
        product(cpu, du.host_mut(), 0.0, adapter.scale, g, mat(&adapter.up));
        if let Some(dx) = dx {
            product(cpu, dx.host_mut(), 1.0, 1.0, mat(&du), mat(&adapter.down));
        }
        let da = x.map(|x| {
            let mut da = Tensor::empty(dy.device(), adapter.down.shape());
            product(cpu, da.host_mut(), 0.0, 1.0, mat(&du).t(), mat(x));
            da
        });
        (da, db)
    }

    /// Multiplies elements number `first ..`, a multiple of four, by their mask over `1 - p`.
    #[multiversion(targets("x86_64+avx2+fma+f16c"))]
    fn mask(x: &mut [f32], dropout: Dropout, first: usize) {
        let keep = (1.0 - dropout.p).recip();
        for (block, x) in x.chunks_mut(4).enumerate() {
            let drawn = dropout.philox.uniforms(dropout.step, (first / 4 + block) as u64);
            for (x, u) in x.iter_mut().zip(drawn) {
                *x = if u >= dropout.p { *x * keep } else { 0.0 };
            }
        }
    }
}

struct LoraMatmulNode {
    y: Id,
    x: Option<Id>,
    residual: Option<Id>,
    out: Shape,
    weight: Weight,
    /// x, if some A wants a gradient.
    saved_x: Option<Tensor>,
    adapters: Vec<Saved>,
}

struct Saved {
    factors: Factors,
    down: Option<Id>,
    up: Option<Id>,
    /// u, if B wants a gradient.
    reduced: Option<Tensor>,
}

impl Node for LoraMatmulNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        let reduced = self.adapters.iter().filter_map(|a| a.reduced.as_ref());
        self.saved_x.iter().chain(reduced).map(Tensor::bytes).sum()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        let dy = dy.reshape(self.out)?;
        let mut factors = Vec::new();
        let mut adapters = |mut dx: Option<&mut Tensor>| {
            for a in &self.adapters {
                let x = self.saved_x.as_ref().filter(|_| a.down.is_some());
                factors.push(backward(dx.as_deref_mut(), &dy, x, a.reduced.as_ref(), &a.factors));
            }
        };
        match self.x {
            None => adapters(None),
            Some(_) => grads.update(self.x, |sum| {
                let mut dx = linear::backward(&dy, &self.weight, sum)?;
                adapters(Some(&mut dx));
                Ok(dx)
            })?,
        }
        for (a, (da, db)) in self.adapters.iter().zip(factors) {
            da.map_or(Ok(()), |da| grads.add(a.down, || Ok(da)))?;
            db.map_or(Ok(()), |db| grads.add(a.up, || Ok(db)))?;
        }
        grads.add(self.residual, || Ok(dy))
    }
}

/// The layer with its adapters on the tape, as one node.
///
/// # Shapes
/// x (.., K), weight (N, K), bias (N), residual and result (.., N), each adapter's down (R, K) and up (N, R).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn apply(
    tape: &mut Tape,
    x: &Var,
    weight: &Weight,
    bias: Option<&Tensor>,
    residual: Option<&Var>,
    adapters: &[Adapter],
) -> Result<Var> {
    let factors: Vec<Factors> = adapters.iter().map(Factors::from).collect();
    let (y, reduced) = forward(x.tensor(), weight, bias, residual.map(Var::tensor), &factors)?;
    let mut inputs: Vec<_> = [Some(x), residual].into_iter().flatten().collect();
    inputs.extend(adapters.iter().flat_map(|a| [&a.down, &a.up]));
    let out = y.shape();
    Ok(tape.record(y, &inputs, |y| LoraMatmulNode {
        y,
        x: x.id(),
        residual: residual.and_then(Var::id),
        out,
        weight: weight.clone(),
        saved_x: adapters.iter().any(|a| a.down.id().is_some()).then(|| x.tensor().clone()),
        adapters: adapters
            .iter()
            .zip(factors)
            .zip(reduced)
            .map(|((a, factors), u)| {
                let (down, up) = (a.down.id(), a.up.id());
                Saved { factors, down, up, reduced: up.is_some().then_some(u) }
            })
            .collect(),
    }))
}

/// The specification.
pub struct Spec;

const SCALES: [f32; 2] = [0.75, -1.5];
const DROP: f32 = 0.3;

/// The dropout of adapter `a` of a case.
fn dropout(case: &Case, a: usize) -> Option<Dropout> {
    (case.get("dropout") > a).then(|| Dropout { philox: Philox::new(77, a as u32), step: 5, p: DROP })
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case = |m, n, k, r, adapters, dropout| {
            let dims = [("M", m), ("N", n), ("K", k), ("R", r), ("adapters", adapters), ("dropout", dropout)];
            Case::new(&[&dims[..], &[("f16", usize::from(m % 2 == 0))]].concat())
        };
        vec![
            case(1, 1, 1, 1, 1, 0),
            case(7, 17, 5, 2, 2, 1),
            case(13, 33, 40, 8, 1, 1),
            case(40, 24, 48, 4, 2, 2),
            case(70, 130, 64, 32, 1, 0),
            case(3, 10, 20, 4, 0, 0),
        ]
    }

    fn real_cases(&self) -> Vec<Case> {
        let case = |m, n, k| {
            let dims = [("M", m), ("N", n), ("K", k), ("R", 32), ("adapters", 1), ("dropout", 0), ("f16", 1)];
            Case::new(&dims)
        };
        vec![case(16384, 320, 320), case(4096, 640, 640), case(1024, 1280, 1280), case(256, 1280, 1280)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (m, n, k, r) = (case.get("M"), case.get("N"), case.get("K"), case.get("R"));
        let scale = |k: usize| (k as f32).recip().sqrt();
        let mut inputs = vec![
            Input::new("x", [m, k]),
            Input::frozen("weight", [n, k]).scaled(scale(k)),
            Input::frozen("bias", [n]),
            Input::new("residual", [m, n]),
        ];
        for _ in 0..case.get("adapters") {
            inputs.push(Input::new("down", [r, k]).scaled(scale(k)));
            inputs.push(Input::new("up", [n, r]).scaled(scale(r)));
        }
        inputs
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (n, r) = (case.get("N"), case.get("R"));
        let mut y = linear::Spec.reference(case, &inputs[..4]);
        for (a, factors) in inputs[4..].chunks(2).enumerate() {
            let u = reduced(case, &inputs[0], &factors[0]);
            for (i, y) in y[0].iter_mut().enumerate() {
                let (row, j) = (i / n, i % n);
                let product: f64 = (0..r).map(|q| u[row * r + q] * factors[1][j * r + q]).sum();
                *y += factor(case, a, i) * product;
            }
        }
        y
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (n, k, r) = (case.get("N"), case.get("K"), case.get("R"));
        let mut all = linear::Spec.reference_backward(case, &inputs[..4], grads);
        for (a, factors) in inputs[4..].chunks(2).enumerate() {
            let (x, down, up) = (&inputs[0], &factors[0], &factors[1]);
            let u = reduced(case, x, down);
            let mut du = vec![0.0; u.len()];
            let (mut da, mut db) = (vec![0.0; down.len()], vec![0.0; up.len()]);
            for (i, dy) in grads[0].iter().enumerate() {
                let (row, j, g) = (i / n, i % n, factor(case, a, i) * dy);
                for q in 0..r {
                    // forward: y += g u[row, q] * up[j, q]
                    db[j * r + q] += g * u[row * r + q];
                    du[row * r + q] += g * up[j * r + q];
                }
            }
            for (i, (du, p)) in du.iter().flat_map(|du| (0..k).map(move |p| (du, p))).enumerate() {
                let (row, q) = (i / k / r, i / k % r);
                // forward: u[row, q] += x[row, p] * down[q, p]
                da[q * k + p] += du * x[row * k + p];
                all[0][row * k + p] += du * down[q * k + p];
            }
            all.extend([da, db]);
        }
        all
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let weight = weight(case, inputs[1].tensor())?;
        let adapter = |(a, f): (usize, &[Var])| Adapter {
            down: f[0].clone(),
            up: f[1].clone(),
            scale: SCALES[a],
            dropout: dropout(case, a),
        };
        let adapters: Vec<_> = inputs[4..].chunks(2).enumerate().map(adapter).collect();
        Ok(vec![apply(tape, &inputs[0], &weight, Some(inputs[2].tensor()), Some(&inputs[3]), &adapters)?])
    }

    fn accuracy(&self, case: &Case) -> Accuracy {
        Accuracy::Gemm { k: case.get("K").max(case.get("N")).max(case.get("M")) }
    }

    fn flops(&self, case: &Case) -> u64 {
        let (m, n, k, r) = (case.get("M"), case.get("N"), case.get("K"), case.get("R"));
        2 * (m * n * k + case.get("adapters") * m * r * (n + k)) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * case.get("N")
    }
}

/// x A^T of a case.
fn reduced(case: &Case, x: &[f64], down: &[f64]) -> Vec<f64> {
    let (m, k, r) = (case.get("M"), case.get("K"), case.get("R"));
    let at = |i: usize| (0..k).map(|p| x[i / r * k + p] * down[i % r * k + p]).sum();
    (0..m * r).map(at).collect()
}

/// What element `i` of adapter `a`'s product is multiplied by.
fn factor(case: &Case, a: usize, i: usize) -> f64 {
    let scale = f64::from(SCALES[a]);
    match dropout(case, a) {
        None => scale,
        Some(d) if d.philox.uniform(d.step, i as u64) < d.p => 0.0,
        Some(d) => scale / (1.0 - f64::from(d.p)),
    }
}

//! Scaled dot-product attention, head by head: with `s = 1/sqrt(D)` and D = C / h,
//! `S = s Q K^T`, `P = softmax(S)` row by row, `out = P V`.
//!
//! `dV = P^T dout`, `dP = dout V^T`; a row of softmax has `dP_j/dS_k = P_j (1[j = k] - P_k)`, so
//! `dS = P (dP - sum_j P_j dP_j)`; `dQ = s dS K`, `dK = s dS^T Q`. Scores exist for one block of query rows at a
//! time, and the backward pass computes them again.

mod cpu;
mod spec;

pub use spec::Spec;

use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Shape, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "attention";

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All.
    None,
    /// Those up to its own place.
    Causal,
}

/// Sizes: B query batches of M rows, `kv_batches` of L keys, h heads of D channels.
#[derive(Clone, Copy)]
struct Dims {
    batches: usize,
    kv_batches: usize,
    m: usize,
    l: usize,
    heads: usize,
    d: usize,
    mask: Mask,
}

impl Dims {
    fn check(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Self> {
        let misfit = || {
            let detail = format!("q {}, k {}, v {} in {heads} heads, mask {mask:?}", q.shape(), k.shape(), v.shape());
            Error::shape(NAME, detail)
        };
        let ([batches, m, c], [kv_batches, l, kc]) =
            (three(q.shape()).ok_or_else(misfit)?, three(k.shape()).ok_or_else(misfit)?);
        let fits = k.shape() == v.shape()
            && kc == c
            && heads > 0
            && c.is_multiple_of(heads)
            && kv_batches * l > 0
            && batches.is_multiple_of(kv_batches)
            && (mask == Mask::None || m == l);
        if fits { Ok(Dims { batches, kv_batches, m, l, heads, d: c / heads, mask }) } else { Err(misfit()) }
    }
}

fn three(shape: Shape) -> Option<[usize; 3]> {
    shape[..].try_into().ok()
}

/// `out = softmax(s Q K^T) V` for every head.
///
/// # Shapes
/// q (B, M, C); k, v (B', L, C) with B a multiple of B': each serves B / B' consecutive batches of q.
/// Head i has channels i D .. (i + 1) D. Result as q.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let dims = Dims::check(q, k, v, heads, mask)?;
    let mut out = Tensor::empty(q.device(), q.shape());
    match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, out.host_mut(), q.host(), k.host(), v.host(), dims),
    }
    Ok(out)
}

/// `[dq, dk, dv]`, those that are wanted.
///
/// # Shapes
/// dout as q; results as q, k, v.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(
    dout: &Tensor,
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    mask: Mask,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    let dims = Dims::check(q, k, v, heads, mask)?;
    if dout.shape().count() != q.shape().count() {
        return Err(Error::shape(NAME, format!("dout {} for q {}", dout.shape(), q.shape())));
    }
    let mut grads = [0, 1, 2].map(|i| wanted[i].then(|| Tensor::empty(q.device(), [q, k, v][i].shape())));
    match q.device() {
        Device::Cpu(cpu) => {
            let outputs = grads.each_mut().map(|g| g.as_mut().map(Tensor::host_mut));
            cpu::backward(cpu, outputs, dout.host(), [q.host(), k.host(), v.host()], dims);
        }
    }
    Ok(grads)
}

struct AttentionNode {
    inputs: [Option<Id>; 3],
    out: Id,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: usize,
    mask: Mask,
}

impl Node for AttentionNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.q.bytes() + self.k.bytes() + self.v.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dout) = grads.take(self.out) else { return Ok(()) };
        let wanted = self.inputs.map(|id| id.is_some());
        let found = backward(&dout, [&self.q, &self.k, &self.v], self.heads, self.mask, wanted)?;
        for (id, grad) in self.inputs.into_iter().zip(found) {
            if let Some(grad) = grad {
                grads.add(id, || Ok(grad))?;
            }
        }
        Ok(())
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, q: &Var, k: &Var, v: &Var, heads: usize, mask: Mask) -> Result<Var> {
    let y = forward(q.tensor(), k.tensor(), v.tensor(), heads, mask)?;
    let [saved_q, saved_k, saved_v] = [q, k, v].map(|x| x.tensor().clone());
    Ok(tape.record(y, &[q, k, v], |out| AttentionNode {
        inputs: [q.id(), k.id(), v.id()],
        out,
        q: saved_q,
        k: saved_k,
        v: saved_v,
        heads,
        mask,
    }))
}

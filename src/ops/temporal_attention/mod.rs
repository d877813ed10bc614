//! Attention along time: every pixel and head attends over its own F frames. With `s = 1/sqrt(D)`,
//! `S = s Q K^T`, `P = softmax(S)` row by row, `out = P V`, all F x F or F x D.
//!
//! The gradients are those of [`attention`](super::attention): `dV = P^T dout`, `dP = dout V^T`,
//! `dS = P (dP - sum_j P_j dP_j)`, `dQ = s dS K`, `dK = s dS^T Q`. Frames stay where they are: a pixel's rows are N
//! rows apart, and nothing is transposed in memory. The backward pass computes P again.

mod cpu;
mod spec;

pub use spec::Spec;

use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "temporal_attention";

/// Most frames a video may have: AnimateDiff's table of positions ends there.
pub const MAX_FRAMES: usize = 32;

/// Sizes: B videos of F frames of N pixels, h heads of D channels.
#[derive(Clone, Copy)]
struct Dims {
    videos: usize,
    frames: usize,
    n: usize,
    heads: usize,
    d: usize,
}

impl Dims {
    fn check(q: &Tensor, k: &Tensor, v: &Tensor, frames: usize, heads: usize) -> Result<Self> {
        let misfit = |why: &str| {
            let detail = format!("q {}, k {}, v {}: {why}", q.shape(), k.shape(), v.shape());
            Err(Error::shape(NAME, detail))
        };
        let &[images, n, c] = &q.shape()[..] else { return misfit("not (B*F, N, C)") };
        if k.shape() != q.shape() || v.shape() != q.shape() {
            return misfit("should be alike");
        }
        if frames == 0 || frames > MAX_FRAMES || !images.is_multiple_of(frames) {
            return misfit(&format!("no videos of {frames} frames, 1 to {MAX_FRAMES}"));
        }
        if heads == 0 || !c.is_multiple_of(heads) {
            return misfit(&format!("no {heads} heads"));
        }
        Ok(Dims { videos: images / frames, frames, n, heads, d: c / heads })
    }
}

/// `out = softmax(s Q K^T) V` for every pixel and head.
///
/// # Shapes
/// q, k, v and result (B*F, N, C).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit or more than [`MAX_FRAMES`] frames.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, frames: usize, heads: usize) -> Result<Tensor> {
    let dims = Dims::check(q, k, v, frames, heads)?;
    let mut out = Tensor::empty(q.device(), q.shape());
    match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, out.host_mut(), [q.host(), k.host(), v.host()], dims),
    }
    Ok(out)
}

/// `[dq, dk, dv]`.
///
/// # Shapes
/// All (B*F, N, C).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(dout: &Tensor, [q, k, v]: [&Tensor; 3], frames: usize, heads: usize) -> Result<[Tensor; 3]> {
    let dims = Dims::check(q, k, v, frames, heads)?;
    if dout.shape().count() != q.shape().count() {
        return Err(Error::shape(NAME, format!("dout {} for q {}", dout.shape(), q.shape())));
    }
    let mut grads = [q, k, v].map(|x| Tensor::empty(x.device(), x.shape()));
    match q.device() {
        Device::Cpu(cpu) => {
            let outputs = grads.each_mut().map(Tensor::host_mut);
            cpu::backward(cpu, outputs, [q.host(), k.host(), v.host(), dout.host()], dims);
        }
    }
    Ok(grads)
}

struct TemporalAttentionNode {
    inputs: [Option<Id>; 3],
    out: Id,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    frames: usize,
    heads: usize,
}

impl Node for TemporalAttentionNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.q.bytes() + self.k.bytes() + self.v.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dout) = grads.take(self.out) else { return Ok(()) };
        let found = backward(&dout, [&self.q, &self.k, &self.v], self.frames, self.heads)?;
        for (id, grad) in self.inputs.into_iter().zip(found) {
            grads.add(id, || Ok(grad))?;
        }
        Ok(())
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, q: &Var, k: &Var, v: &Var, frames: usize, heads: usize) -> Result<Var> {
    let y = forward(q.tensor(), k.tensor(), v.tensor(), frames, heads)?;
    let [saved_q, saved_k, saved_v] = [q, k, v].map(|x| x.tensor().clone());
    Ok(tape.record(y, &[q, k, v], |out| TemporalAttentionNode {
        inputs: [q.id(), k.id(), v.id()],
        out,
        q: saved_q,
        k: saved_k,
        v: saved_v,
        frames,
        heads,
    }))
}

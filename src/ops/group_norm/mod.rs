//! Group normalisation with an optional SiLU. Over a set of n numbers, those of one channel group in
//! consecutive images: `h = (x - mean) rstd` with `rstd = 1 / sqrt(var + eps)`, `u = gamma h + beta`, and
//! `y = u` or `y = silu(u)`.
//!
//! `du = dy silu'(u)`, `dh = gamma du`. With `dmean/dx = 1/n` and `drstd/dx = -rstd^2 h / n`,
//! `dx = rstd (dh - mean(dh) - h mean(dh h))`. gamma and beta are frozen.

mod cpu;
mod spec;

pub use spec::Spec;

use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Shape, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "group_norm";

/// How to normalise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// G: channel groups, each with statistics of its own
    pub groups: usize,
    /// Added to the variance
    pub eps: f64,
    /// Consecutive images that share statistics: 1 for each frame alone, F for the whole video
    pub images_per_group: usize,
    /// True to end with SiLU
    pub silu: bool,
}

/// Sizes: `sets` runs of `rows` rows of `channels` channels share nothing.
#[derive(Clone, Copy)]
struct Dims {
    sets: usize,
    rows: usize,
    channels: usize,
}

fn check(x: Shape, gamma: &Tensor, beta: &Tensor, norm: GroupNorm) -> Result<Dims> {
    let (images, channels) = (x.first().copied().unwrap_or(0), x.last());
    let GroupNorm { groups, images_per_group: each, .. } = norm;
    if x.len() < 2 || x.count() == 0 || groups == 0 || !channels.is_multiple_of(groups) {
        return Err(Error::shape(NAME, format!("x {x} does not fall into {groups} groups of channels")));
    }
    if each == 0 || !images.is_multiple_of(each) {
        return Err(Error::shape(NAME, format!("x {x} does not fall into runs of {each} images")));
    }
    if [gamma, beta].iter().any(|p| p.shape().count() != channels) {
        let detail = format!("gamma {} and beta {} for x {x}", gamma.shape(), beta.shape());
        return Err(Error::shape(NAME, detail));
    }
    let sets = images / each;
    Ok(Dims { sets, rows: x.rows() / sets, channels })
}

/// Returns `y` and the statistics of every set.
///
/// # Shapes
/// x (B*F, .., C), gamma and beta (C); y as x, statistics (sets, G, 3): the mean as a sum of two numbers, and
/// rstd.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, norm: GroupNorm) -> Result<(Tensor, Tensor)> {
    let dims = check(x.shape(), gamma, beta, norm)?;
    let mut y = Tensor::empty(x.device(), x.shape());
    let mut statistics = Tensor::empty(x.device(), [dims.sets, norm.groups, 3]);
    match x.device() {
        Device::Cpu(cpu) => {
            let affine = (gamma.host(), beta.host());
            cpu::forward(cpu, y.host_mut(), statistics.host_mut(), x.host(), affine, dims, norm);
        }
    }
    Ok((y, statistics))
}

/// `dx`, added to `sum` if there is one, else written over `dy`.
///
/// # Shapes
/// dy, x and result (B*F, .., C), gamma and beta (C), statistics as [`forward`] gave them.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(
    mut dy: Tensor,
    x: &Tensor,
    statistics: &Tensor,
    (gamma, beta): (&Tensor, &Tensor),
    norm: GroupNorm,
    sum: Option<Tensor>,
) -> Result<Tensor> {
    let dims = check(x.shape(), gamma, beta, norm)?;
    if dy.shape().count() != x.shape().count() || statistics.shape().count() != dims.sets * norm.groups * 3 {
        let detail = format!("dy {} and statistics {} for x {}", dy.shape(), statistics.shape(), x.shape());
        return Err(Error::shape(NAME, detail));
    }
    let mut sum = sum;
    match x.device() {
        Device::Cpu(cpu) => {
            let affine = (gamma.host(), beta.host());
            let onto = sum.as_mut().map(Tensor::host_mut);
            cpu::backward(cpu, onto, dy.host_mut(), x.host(), statistics.host(), affine, dims, norm);
        }
    }
    Ok(sum.unwrap_or(dy))
}

struct GroupNormNode {
    x: Option<Id>,
    y: Id,
    saved: Tensor,
    statistics: Tensor,
    gamma: Tensor,
    beta: Tensor,
    norm: GroupNorm,
}

impl Node for GroupNormNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.saved.bytes() + self.statistics.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        let affine = (&self.gamma, &self.beta);
        grads.update(self.x, |sum| backward(dy, &self.saved, &self.statistics, affine, self.norm, sum))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, x: &Var, gamma: &Tensor, beta: &Tensor, norm: GroupNorm) -> Result<Var> {
    let (y, statistics) = forward(x.tensor(), gamma, beta, norm)?;
    Ok(tape.record(y, &[x], |y| GroupNormNode {
        x: x.id(),
        y,
        saved: x.tensor().clone(),
        statistics,
        gamma: gamma.clone(),
        beta: beta.clone(),
        norm,
    }))
}

//! Attention with its four projections, and the feed-forward layer: the parts of a transformer block.

use crate::nn::context::Context;
use crate::nn::layer::Linear;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::ops::attention::{self, Mask};
use crate::ops::{geglu, temporal_attention};
use crate::{Result, Var};

/// Multi-head attention. Queries come from C features, keys and values from C or from the text.
#[derive(Clone, Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    /// Projections without bias but the last, as in the UNet.
    ///
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, channels: usize, source: usize, heads: usize) -> Result<Self> {
        Self::build(params, channels, source, heads, false)
    }

    /// One head, every projection with bias, as in the VAE.
    ///
    /// # Errors
    /// Those of the source.
    pub fn single(params: &Params, channels: usize) -> Result<Self> {
        Self::build(params, channels, channels, 1, true)
    }

    fn build(params: &Params, channels: usize, source: usize, heads: usize, bias: bool) -> Result<Self> {
        Ok(Attention {
            to_q: Linear::new(&params.at("to_q"), channels, channels, bias)?,
            to_k: Linear::new(&params.at("to_k"), channels, source, bias)?,
            to_v: Linear::new(&params.at("to_v"), channels, source, bias)?,
            to_out: Linear::new(&params.at("to_out.0"), channels, channels, true)?,
            heads,
        })
    }

    /// Every picture's tokens among themselves: x (B*F, N, C), plus `residual`.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward_self(&self, pass: &mut Pass, x: &Var, residual: &Var) -> Result<Var> {
        let (q, k, v) = self.project(pass, x)?;
        let mixed = attention::apply(pass.tape, &q, &k, &v, self.heads, Mask::None)?;
        self.to_out.forward(pass, &mixed, Some(residual))
    }

    /// Every token with its video's prompt: x (B*F, N, C), context (B, L, D), plus `residual`.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward_cross(&self, pass: &mut Pass, x: &Var, context: &Context, residual: &Var) -> Result<Var> {
        let q = self.to_q.forward(pass, x, None)?;
        let k = context.project(pass, &self.to_k)?;
        let v = context.project(pass, &self.to_v)?;
        let mixed = attention::apply(pass.tape, &q, &k, &v, self.heads, Mask::None)?;
        self.to_out.forward(pass, &mixed, Some(residual))
    }

    /// Every pixel's frames among themselves: x (B*F, N, C), plus `residual`.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward_temporal(&self, pass: &mut Pass, x: &Var, frames: usize, residual: &Var) -> Result<Var> {
        let (q, k, v) = self.project(pass, x)?;
        let mixed = temporal_attention::apply(pass.tape, &q, &k, &v, frames, self.heads)?;
        self.to_out.forward(pass, &mixed, Some(residual))
    }

    fn project(&self, pass: &mut Pass, x: &Var) -> Result<(Var, Var, Var)> {
        let q = self.to_q.forward(pass, x, None)?;
        let k = self.to_k.forward(pass, x, None)?;
        let v = self.to_v.forward(pass, x, None)?;
        Ok((q, k, v))
    }

    /// The layers that LoRA may change, in the order of their names in the checkpoint.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.to_q, &self.to_k, &self.to_v, &self.to_out]
    }
}

/// Linear to 8C, GEGLU, linear back to C.
#[derive(Clone, Debug)]
pub struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, channels: usize) -> Result<Self> {
        Ok(FeedForward {
            up: Linear::new(&params.at("net.0.proj"), 8 * channels, channels, true)?,
            down: Linear::new(&params.at("net.2"), channels, 4 * channels, true)?,
        })
    }

    /// # Errors
    /// Those of the operations.
    pub fn forward(&self, pass: &mut Pass, x: &Var, residual: &Var) -> Result<Var> {
        let wide = self.up.forward(pass, x, None)?; // (.., C) -> (.., 8C)
        let gated = geglu::apply(pass.tape, &wide)?; // (.., 8C) -> (.., 4C)
        self.down.forward(pass, &gated, Some(residual))
    }

    /// The layers that LoRA may change.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.up, &self.down]
    }
}

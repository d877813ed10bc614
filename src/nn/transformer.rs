//! The two transformers of a UNet layer: over the pixels of a picture, and over the frames of a pixel.

use crate::model::config::MotionNorm;
use crate::nn::attention::{Attention, FeedForward};
use crate::nn::context::Context;
use crate::nn::layer::{GroupNorm, LayerNorm, Linear};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::ops::layer_norm::Position;
use crate::{Result, Tensor, Var};

const GROUP_EPS: f64 = 1e-6;
const LAYER_EPS: f64 = 1e-5;

/// What both transformers are made of.
#[derive(Clone, Debug)]
struct Parts {
    norm: GroupNorm,
    proj_in: Linear,
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    proj_out: Linear,
}

impl Parts {
    /// `source` is the width that the second attention's keys and values come from; `project` makes `proj_in` and
    /// `proj_out` from C to C features.
    fn new(
        params: &Params,
        [channels, heads, groups, source]: [usize; 4],
        project: impl Fn(&Params) -> Result<Linear>,
    ) -> Result<Self> {
        let block = params.at("transformer_blocks.0");
        let layer_norm = |name: &str| LayerNorm::new(&block.at(name), channels, LAYER_EPS);
        Ok(Parts {
            norm: GroupNorm::new(&params.at("norm"), channels, groups, GROUP_EPS)?,
            proj_in: project(&params.at("proj_in"))?,
            norm1: layer_norm("norm1")?,
            attn1: Attention::new(&block.at("attn1"), channels, channels, heads)?,
            norm2: layer_norm("norm2")?,
            attn2: Attention::new(&block.at("attn2"), channels, source, heads)?,
            norm3: layer_norm("norm3")?,
            ff: FeedForward::new(&block.at("ff"), channels)?,
            proj_out: project(&params.at("proj_out"))?,
        })
    }

    /// The layers that LoRA may change.
    fn linears(&self) -> Vec<&Linear> {
        let mut all = vec![&self.proj_in];
        all.extend(self.attn1.linears());
        all.extend(self.attn2.linears());
        all.extend(self.ff.linears());
        all.push(&self.proj_out);
        all
    }
}

/// Self-attention over pixels, cross-attention to the prompt, feed-forward.
#[derive(Clone, Debug)]
pub struct SpatialTransformer {
    parts: Parts,
}

/// Sizes of a [`SpatialTransformer`].
#[derive(Clone, Copy, Debug)]
pub struct SpatialDims {
    pub channels: usize,
    pub heads: usize,
    pub groups: usize,
    pub context: usize,
}

impl SpatialTransformer {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, dims: SpatialDims) -> Result<Self> {
        let SpatialDims { channels, heads, groups, context } = dims;
        let project = |params: &Params| Linear::pointwise(params, channels, channels);
        Ok(SpatialTransformer { parts: Parts::new(params, [channels, heads, groups, context], project)? })
    }

    /// # Shapes
    /// x (B*F, H, W, C), kept.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward(&self, pass: &mut Pass, x: &Var, context: &Context) -> Result<Var> {
        let (parts, shape) = (&self.parts, x.tensor().shape());
        let h = parts.norm.forward(pass.tape, x)?;
        let h = h.reshape([shape[0], shape[1] * shape[2], shape[3]])?; // (B*F, H, W, C) -> (B*F, N, C)
        let h = parts.proj_in.forward(pass, &h, None)?;
        let n = parts.norm1.forward(pass.tape, &h, None)?;
        let h = parts.attn1.forward_self(pass, &n, &h)?;
        let n = parts.norm2.forward(pass.tape, &h, None)?;
        let h = parts.attn2.forward_cross(pass, &n, context, &h)?;
        let n = parts.norm3.forward(pass.tape, &h, None)?;
        let h = parts.ff.forward(pass, &n, &h)?;
        parts.proj_out.forward(pass, &h, Some(x))?.reshape(shape)
    }

    /// The layers that LoRA may change.
    pub fn linears(&self) -> Vec<&Linear> {
        self.parts.linears()
    }
}

/// AnimateDiff's motion module: two self-attentions over frames and a feed-forward, for every pixel.
#[derive(Clone, Debug)]
pub struct MotionModule {
    parts: Parts,
    norm_mode: MotionNorm,
    /// (max frames, C)
    positions: Tensor,
}

/// Sizes of a [`MotionModule`].
#[derive(Clone, Copy, Debug)]
pub struct MotionDims {
    pub channels: usize,
    pub heads: usize,
    pub groups: usize,
    pub max_frames: usize,
    pub norm_mode: MotionNorm,
}

impl MotionModule {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, dims: MotionDims) -> Result<Self> {
        let MotionDims { channels, heads, groups, max_frames, norm_mode } = dims;
        let table = sinusoid_positions(max_frames, channels);
        let project = |params: &Params| Linear::new(params, channels, channels, true);
        Ok(MotionModule {
            parts: Parts::new(params, [channels, heads, groups, channels], project)?,
            norm_mode,
            positions: Tensor::from_slice(params.device(), [max_frames, channels], &table)?,
        })
    }

    /// # Shapes
    /// x (B*F, H, W, C), kept.
    ///
    /// # Errors
    /// Those of the operations; more frames than the table of positions has.
    pub fn forward(&self, pass: &mut Pass, x: &Var, frames: usize) -> Result<Var> {
        let (parts, shape) = (&self.parts, x.tensor().shape());
        let pixels = shape[1] * shape[2];
        let table = self.positions.narrow(0, frames)?;
        let position = || Some(Position { table: &table, rows: pixels });
        let h = match self.norm_mode {
            MotionNorm::Frame => parts.norm.forward(pass.tape, x)?,
            MotionNorm::Video => parts.norm.forward_over(pass.tape, x, frames)?,
        };
        let h = h.reshape([shape[0], pixels, shape[3]])?; // (B*F, H, W, C) -> (B*F, N, C)
        let h = parts.proj_in.forward(pass, &h, None)?;
        let n = parts.norm1.forward(pass.tape, &h, position())?;
        let h = parts.attn1.forward_temporal(pass, &n, frames, &h)?;
        let n = parts.norm2.forward(pass.tape, &h, position())?;
        let h = parts.attn2.forward_temporal(pass, &n, frames, &h)?;
        let n = parts.norm3.forward(pass.tape, &h, None)?;
        let h = parts.ff.forward(pass, &n, &h)?;
        parts.proj_out.forward(pass, &h, Some(x))?.reshape(shape)
    }

    /// The layers that LoRA may change.
    pub fn linears(&self) -> Vec<&Linear> {
        self.parts.linears()
    }
}

/// `pe[f, 2k] = sin(f w_k)`, `pe[f, 2k+1] = cos(f w_k)`, `w_k = 10000^(-2k/C)`.
pub(crate) fn sinusoid_positions(frames: usize, channels: usize) -> Vec<f32> {
    let value = |f: usize, c: usize| {
        let angle = f as f64 * (-(10000_f64.ln()) * (c - c % 2) as f64 / channels as f64).exp();
        if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    (0..frames).flat_map(|f| (0..channels).map(move |c| value(f, c) as f32)).collect()
}

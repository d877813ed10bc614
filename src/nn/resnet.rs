//! Residual block of two convolutions, shared by the UNet (with a time embedding) and the VAE (without).

use crate::nn::layer::{Conv2d, GroupNorm, Linear};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::{Result, Tensor, Var};

/// GroupNorm, SiLU, conv, (+ time), GroupNorm, SiLU, conv, + shortcut.
#[derive(Clone, Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
}

/// Sizes of a [`Resnet`].
#[derive(Clone, Copy, Debug)]
pub struct ResnetDims {
    pub inputs: usize,
    pub outputs: usize,
    /// Width of the time embedding, if there is one.
    pub time: Option<usize>,
    pub groups: usize,
    pub eps: f64,
}

impl Resnet {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, dims: ResnetDims) -> Result<Self> {
        let ResnetDims { inputs, outputs, time, groups, eps } = dims;
        let project = |time| Linear::new(&params.at("time_emb_proj"), outputs, time, true);
        let shortcut = || Linear::pointwise(&params.at("conv_shortcut"), outputs, inputs);
        Ok(Resnet {
            norm1: GroupNorm::new(&params.at("norm1"), inputs, groups, eps)?,
            conv1: Conv2d::same(&params.at("conv1"), outputs, inputs)?,
            time_emb_proj: time.map(project).transpose()?,
            norm2: GroupNorm::new(&params.at("norm2"), outputs, groups, eps)?,
            conv2: Conv2d::same(&params.at("conv2"), outputs, outputs)?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    /// # Shapes
    /// x (B*F, H, W, C) -> (B*F, H, W, N); `time` (B, T), already through SiLU.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward(&self, pass: &mut Pass, x: &Var, time: Option<&Tensor>) -> Result<Var> {
        let shift = match (&self.time_emb_proj, time) {
            (Some(project), Some(time)) => Some(project.forward(pass, &Var::constant(time.clone()), None)?),
            _ => None,
        };
        let h = self.norm1.forward_silu(pass.tape, x)?;
        let h = self.conv1.forward(pass.tape, &h, shift.as_ref().map(Var::tensor), None)?;
        let h = self.norm2.forward_silu(pass.tape, &h)?;
        let shortcut = self.conv_shortcut.as_ref().map(|s| s.forward(pass, x, None)).transpose()?;
        self.conv2.forward(pass.tape, &h, None, Some(shortcut.as_ref().unwrap_or(x)))
    }
}

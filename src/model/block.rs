//! A block of the UNet: layers of resnet, spatial transformer and motion module, then a change of size.

use super::config::{MotionConfig, UNetConfig};
use crate::nn::context::Context;
use crate::nn::layer::{Conv2d, Linear};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::resnet::{Resnet, ResnetDims};
use crate::nn::transformer::{MotionDims, MotionModule, SpatialDims, SpatialTransformer};
use crate::ops::conv2d::Conv;
use crate::ops::{concat, upsample};
use crate::{Result, Tensor, Var};

/// One of the UNet's blocks.
#[derive(Clone, Debug)]
pub(super) struct Block {
    side: Side,
    layers: Vec<Layer>,
    resample: Option<Conv2d>,
}

/// Where a block stands, which decides what it does with skip connections and how it changes the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Hands on every layer's output; halves the size.
    Down,
    Mid,
    /// Takes in a skip connection before every layer; then grows to the size of the next one.
    Up,
}

#[derive(Clone, Debug)]
struct Layer {
    resnet: Resnet,
    transformer: Option<SpatialTransformer>,
    motion: Option<MotionModule>,
}

/// What the blocks of one network have in common.
pub(super) struct BlockDims<'c> {
    pub config: &'c UNetConfig,
    pub motion: Option<&'c MotionConfig>,
    pub time: usize,
}

/// What a block reads beside the latents.
pub(super) struct Scene<'c> {
    /// (B, T), through SiLU.
    pub time: Tensor,
    pub context: &'c Context,
    /// Frames that motion modules relate; `None` bypasses them.
    pub motion_frames: Option<usize>,
}

impl BlockDims<'_> {
    fn resnet(&self, inputs: usize, outputs: usize) -> ResnetDims {
        let (groups, eps) = (self.config.norm_num_groups, self.config.norm_eps);
        ResnetDims { inputs, outputs, time: Some(self.time), groups, eps }
    }

    fn transformer(&self, params: &Params, j: usize, channels: usize, heads: usize) -> Result<SpatialTransformer> {
        let (groups, context) = (self.config.norm_num_groups, self.config.cross_attention_dim);
        SpatialTransformer::new(&params.at(format!("attentions.{j}")), SpatialDims { channels, heads, groups, context })
    }

    fn motion(&self, params: Option<&Params>, j: usize, channels: usize) -> Result<Option<MotionModule>> {
        let (Some(params), Some(config)) = (params, self.motion) else { return Ok(None) };
        let dims = MotionDims {
            channels,
            heads: config.motion_num_attention_heads,
            groups: self.config.norm_num_groups,
            max_frames: config.motion_max_seq_length,
            norm_mode: config.motion_norm,
        };
        MotionModule::new(&params.at(format!("motion_modules.{j}")), dims).map(Some)
    }
}

impl Block {
    pub(super) fn down(
        dims: &BlockDims,
        params: Params,
        motion: Option<Params>,
        i: usize,
        inputs: usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let channels = dims.config.block_out_channels[i];
        let heads = dims.config.down_has_attention(i).then(|| dims.config.heads(i));
        let mut layers = Vec::new();
        for j in 0..dims.config.layers_per_block {
            let inputs = if j == 0 { inputs } else { channels };
            layers.push(Layer {
                resnet: Resnet::new(&params.at(format!("resnets.{j}")), dims.resnet(inputs, channels))?,
                transformer: heads.map(|h| dims.transformer(&params, j, channels, h)).transpose()?,
                motion: dims.motion(motion.as_ref(), j, channels)?,
            });
            skips.push(channels);
        }
        let last = i + 1 == dims.config.block_out_channels.len();
        let downsample = || {
            skips.push(channels);
            let conv = Conv { stride: 2, padding: [1; 4] };
            Conv2d::new(&params.at("downsamplers.0.conv"), channels, channels, 3, conv)
        };
        Ok(Block { side: Side::Down, layers, resample: (!last).then(downsample).transpose()? })
    }

    pub(super) fn mid(dims: &BlockDims, params: Params, motion: Option<Params>, channels: usize) -> Result<Self> {
        let motion = motion.filter(|_| dims.motion.is_some_and(|m| m.use_motion_mid_block));
        let resnet = |j: usize| Resnet::new(&params.at(format!("resnets.{j}")), dims.resnet(channels, channels));
        let heads = dims.config.heads(dims.config.block_out_channels.len() - 1);
        let first = Layer {
            resnet: resnet(0)?,
            transformer: Some(dims.transformer(&params, 0, channels, heads)?),
            motion: dims.motion(motion.as_ref(), 0, channels)?,
        };
        let second = Layer { resnet: resnet(1)?, transformer: None, motion: None };
        Ok(Block { side: Side::Mid, layers: vec![first, second], resample: None })
    }

    pub(super) fn up(
        dims: &BlockDims,
        params: Params,
        motion: Option<Params>,
        i: usize,
        inputs: usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let n = dims.config.block_out_channels.len();
        let level = n - 1 - i; // the down block at the same height
        let channels = dims.config.block_out_channels[level];
        let heads = dims.config.up_has_attention(i).then(|| dims.config.heads(level));
        let mut layers = Vec::new();
        for j in 0..=dims.config.layers_per_block {
            let inputs = if j == 0 { inputs } else { channels };
            let skip = skips.pop().expect("every up layer should have a skip connection");
            layers.push(Layer {
                resnet: Resnet::new(&params.at(format!("resnets.{j}")), dims.resnet(inputs + skip, channels))?,
                transformer: heads.map(|h| dims.transformer(&params, j, channels, h)).transpose()?,
                motion: dims.motion(motion.as_ref(), j, channels)?,
            });
        }
        let upsample = || Conv2d::same(&params.at("upsamplers.0.conv"), channels, channels);
        Ok(Block { side: Side::Up, layers, resample: (level > 0).then(upsample).transpose()? })
    }

    /// What this block consumes: the running value and, on the way up, its skip connections in the order of
    /// its layers, then the one after them, whose size it grows to.
    pub(super) fn inputs(&self, h: Var, skips: &mut Vec<Var>) -> Vec<Var> {
        let mut inputs = vec![h];
        if self.side == Side::Up {
            inputs.extend(skips.drain(skips.len() - self.layers.len()..).rev());
            if self.resample.is_some() {
                inputs.extend(skips.last().map(Var::detach));
            }
        }
        inputs
    }

    /// The skip connections that the block hands on, then its result.
    pub(super) fn forward(&self, pass: &mut Pass, inputs: &[Var], scene: &Scene) -> Result<Vec<Var>> {
        let mut outputs = Vec::new();
        let mut h = inputs[0].clone();
        for (j, layer) in self.layers.iter().enumerate() {
            if self.side == Side::Up {
                h = concat::apply(pass.tape, &h, &inputs[1 + j])?;
            }
            h = layer.forward(pass, &h, scene)?;
            if self.side == Side::Down {
                outputs.push(h.clone());
            }
        }
        if let Some(conv) = &self.resample {
            if self.side == Side::Up {
                let like = inputs[1 + self.layers.len()].tensor().shape();
                h = upsample::apply(pass.tape, &h, like[1], like[2])?;
            }
            h = conv.forward(pass.tape, &h, None, None)?;
            if self.side == Side::Down {
                outputs.push(h.clone());
            }
        }
        outputs.push(h);
        Ok(outputs)
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| {
            let spatial = layer.transformer.iter().flat_map(SpatialTransformer::linears);
            spatial.chain(layer.motion.iter().flat_map(MotionModule::linears))
        })
    }
}

impl Layer {
    fn forward(&self, pass: &mut Pass, x: &Var, scene: &Scene) -> Result<Var> {
        let mut h = self.resnet.forward(pass, x, Some(&scene.time))?;
        if let Some(transformer) = &self.transformer {
            h = transformer.forward(pass, &h, scene.context)?;
        }
        if let (Some(motion), Some(frames)) = (&self.motion, scene.motion_frames) {
            h = motion.forward(pass, &h, frames)?;
        }
        Ok(h)
    }
}

//! The UNet of Stable Diffusion 1.5, with AnimateDiff's motion modules where they are loaded.
//!
//! One network serves pictures and videos: a picture is a video of one frame, for which motion modules are
//! the identity. Blocks are numbered as in the paper: down blocks, mid block, up blocks; 0 to 8 for SD1.5.

use super::block::{Block, BlockDims, Scene};
use super::config::{MotionConfig, UNetConfig};
use crate::nn::context::Context;
use crate::nn::layer::{Conv2d, GroupNorm, Linear};
use crate::nn::params::Params;
use crate::nn::pass::{Changes, Pass};
use crate::ops::activation::{self, Activation};
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The denoising network.
#[derive(Clone, Debug)]
pub struct UNet {
    config: UNetConfig,
    conv_in: Conv2d,
    time_embedding: [Linear; 2],
    blocks: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    max_frames: Option<usize>,
    device: Device,
}

/// How the network is run: everything but the latents.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'c> {
    /// Diffusion time of every video, 0 to 999.
    pub timesteps: &'c [f32],
    /// Prompts: what block `i` reads is `contexts.at(i)`.
    pub contexts: Contexts<'c>,
    /// Frames of every video.
    pub frames: usize,
    /// False makes every motion module the identity, as one frame does.
    pub motion: Motion,
    /// LoRA in force.
    pub changes: &'c Changes,
    /// Trades time for memory in training: keeps only what enters a block, and runs the block again in the
    /// backward pass.
    pub recompute: bool,
}

/// Whether motion modules act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Motion {
    /// On a single frame they are bypassed, as AnimateDiff does.
    #[default]
    Auto,
    /// Always, on a single frame too, as diffusers does.
    On,
    /// Never.
    Bypass,
}

/// The prompts of a forward pass, block by block.
#[derive(Clone, Copy, Debug)]
pub struct Contexts<'c> {
    all: &'c Context,
    injected: Option<(&'c [usize], &'c Context)>,
}

impl<'c> Contexts<'c> {
    /// The same prompts in every block.
    pub fn same(all: &'c Context) -> Self {
        Contexts { all, injected: None }
    }

    /// `other` in the listed blocks, as the paper's prompt analysis does.
    pub fn inject(self, blocks: &'c [usize], other: &'c Context) -> Self {
        Contexts { injected: Some((blocks, other)), ..self }
    }

    /// The prompts that block `block` reads.
    pub fn at(&self, block: usize) -> &'c Context {
        match self.injected {
            Some((blocks, other)) if blocks.contains(&block) => other,
            _ => self.all,
        }
    }
}

impl UNet {
    /// Builds the network from its parameters, with motion modules if they are given.
    ///
    /// # Errors
    /// Those of the sources; [`Error::Model`] if the motion modules do not fit the UNet.
    pub fn new(params: &Params, config: &UNetConfig, motion: Option<(&Params, &MotionConfig)>) -> Result<Self> {
        if let Some((_, m)) = motion {
            m.fits(config, std::path::Path::new("motion module"))?;
        }
        let [first, last] = [config.block_out_channels.first(), config.block_out_channels.last()]
            .map(|c| *c.expect("a validated config should have blocks"));
        let time = config.time_dim();
        let dims = BlockDims { config, motion: motion.map(|(_, m)| m), time };
        let motion_params = motion.map(|(p, _)| p);
        let channels = &config.block_out_channels;
        let n = channels.len();
        let mut blocks = Vec::new();
        let mut skips = vec![first]; // channels of every skip connection, pushed on the way down
        let mut width = first;
        for i in 0..n {
            let at = format!("down_blocks.{i}");
            blocks.push(Block::down(&dims, params.at(&at), motion_params.map(|p| p.at(&at)), i, width, &mut skips)?);
            width = channels[i];
        }
        let at = "mid_block";
        blocks.push(Block::mid(&dims, params.at(at), motion_params.map(|p| p.at(at)), last)?);
        for i in 0..n {
            let at = format!("up_blocks.{i}");
            blocks.push(Block::up(&dims, params.at(&at), motion_params.map(|p| p.at(&at)), i, width, &mut skips)?);
            width = channels[n - 1 - i];
        }
        let embedding = params.at("time_embedding");
        Ok(UNet {
            config: config.clone(),
            conv_in: Conv2d::same(&params.at("conv_in"), first, config.in_channels)?,
            time_embedding: [
                Linear::new(&embedding.at("linear_1"), time, first, true)?,
                Linear::new(&embedding.at("linear_2"), time, time, true)?,
            ],
            blocks,
            conv_norm_out: GroupNorm::new(&params.at("conv_norm_out"), first, config.norm_num_groups, config.norm_eps)?,
            conv_out: Conv2d::same(&params.at("conv_out"), config.out_channels, first)?,
            max_frames: motion.map(|(_, m)| m.motion_max_seq_length),
            device: params.device().clone(),
        })
    }

    /// Sizes the network was built with.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Most frames that the motion modules can relate; `None` without motion modules.
    pub fn max_frames(&self) -> Option<usize> {
        self.max_frames
    }

    /// Every layer that LoRA may change, in the order of the forward pass.
    pub fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).collect()
    }

    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    /// x (B*F, H, W, 4), kept.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch, timesteps, prompts and frames do not go together, or there are more
    /// frames than motion modules can relate.
    pub fn forward<'a>(&'a self, tape: &mut Tape<'a>, x: &Var, condition: Condition<'a>) -> Result<Var> {
        self.check(x.tensor(), &condition)?;
        let time = self.embed_time(tape, condition.timesteps, condition.changes)?;
        let acts = match condition.motion {
            Motion::Auto => condition.frames > 1,
            Motion::On => true,
            Motion::Bypass => false,
        };
        let motion_frames = acts.then_some(condition.frames);
        let mut h = self.conv_in.forward(tape, x, None, None)?;
        let mut skips = vec![h.clone()];
        for (i, block) in self.blocks.iter().enumerate() {
            let scene = Scene { time: time.clone(), context: condition.contexts.at(i), motion_frames };
            let inputs = block.inputs(h, &mut skips);
            let run = move |tape: &mut Tape, inputs: &[Var]| {
                block.forward(&mut Pass { tape, changes: condition.changes }, inputs, &scene)
            };
            let mut outputs = if condition.recompute { tape.checkpoint(inputs, run)? } else { run(tape, &inputs)? };
            h = outputs.pop().expect("a block should have an output");
            skips.append(&mut outputs);
        }
        let h = self.conv_norm_out.forward_silu(tape, &h)?;
        self.conv_out.forward(tape, &h, None, None)
    }

    fn check(&self, x: &Tensor, condition: &Condition) -> Result<()> {
        let Condition { timesteps, frames, contexts, .. } = *condition;
        let videos = timesteps.len();
        let fail = |detail: String| Err(Error::shape("unet", detail));
        let [images, _, _, channels] = x.shape()[..] else {
            return fail(format!("latents {} are not (B*F, H, W, C)", x.shape()));
        };
        if channels != self.config.in_channels || images != videos * frames || images == 0 {
            return fail(format!("latents {} for {videos} timesteps of {frames} frames", x.shape()));
        }
        if let Some(max) = self.max_frames.filter(|&max| frames > max && condition.motion != Motion::Bypass) {
            return fail(format!("{frames} frames, but the motion modules know {max} positions"));
        }
        for context in (0..self.blocks.len()).map(|i| contexts.at(i).tokens().shape()) {
            if context.len() != 3 || context[0] != videos || context[2] != self.config.cross_attention_dim {
                let width = self.config.cross_attention_dim;
                return fail(format!("prompts {context} where ({videos}, L, {width}) are needed"));
            }
        }
        Ok(())
    }

    /// Sinusoid, linear, SiLU, linear, SiLU: timesteps (B) -> (B, T), as every resnet takes it.
    fn embed_time(&self, tape: &mut Tape, timesteps: &[f32], changes: &Changes) -> Result<Tensor> {
        let width = self.config.block_out_channels[0];
        let waves: Vec<f32> = timesteps.iter().flat_map(|&t| sinusoid(t, &self.config)).collect();
        let pass = &mut Pass { tape, changes };
        let x = Var::constant(Tensor::from_slice(&self.device, [timesteps.len(), width], &waves)?);
        let h = self.time_embedding[0].forward(pass, &x, None)?;
        let h = activation::apply(pass.tape, &h, Activation::Silu)?;
        let h = self.time_embedding[1].forward(pass, &h, None)?;
        Ok(activation::apply(pass.tape, &h, Activation::Silu)?.tensor().clone())
    }
}

/// Cosines and sines of `t w_k` with `w_k = 10000^(-k / (width/2 - freq_shift))`, cosines first as configured.
fn sinusoid(t: f32, config: &UNetConfig) -> Vec<f32> {
    let half = config.block_out_channels[0] / 2;
    let rate = -(10000_f64.ln()) / (half as f64 - config.freq_shift);
    let angles = (0..half).map(|k| f64::from(t) * (rate * k as f64).exp());
    let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
    if config.flip_sin_to_cos { [cosines, sines].concat() } else { [sines, cosines].concat() }
}

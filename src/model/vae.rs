//! Stable Diffusion's autoencoder: pictures to latents, eight times smaller on a side, and back.

use super::config::VaeConfig;
use crate::nn::attention::Attention;
use crate::nn::layer::{Conv2d, GroupNorm, Linear};
use crate::nn::params::Params;
use crate::nn::pass::{Changes, Pass};
use crate::nn::resnet::{Resnet, ResnetDims};
use crate::ops::conv2d::Conv;
use crate::ops::upsample;
use crate::{Error, Result, Tape, Tensor, Var};

const EPS: f64 = 1e-6;

/// AutoencoderKL, both ways.
#[derive(Clone, Debug)]
pub struct Vae {
    config: VaeConfig,
    encoder: Coder,
    quant_conv: Linear,
    post_quant_conv: Linear,
    decoder: Coder,
}

/// Mean and log-variance of the latents of pictures, (B, h, w, 4) each, not scaled.
#[derive(Clone, Debug)]
pub struct Posterior {
    pub mean: Tensor,
    pub logvar: Tensor,
}

impl Posterior {
    /// `mean + exp(logvar / 2) * noise`, with the log-variance kept in [-30, 20].
    ///
    /// # Errors
    /// [`Error::Shape`] for noise of another size.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.shape().count() != self.mean.shape().count() {
            return Err(Error::shape("vae", format!("noise {} for latents {}", noise.shape(), self.mean.shape())));
        }
        let spread = |(&m, (&v, &n)): (&f32, (&f32, &f32))| (0.5 * v.clamp(-30.0, 20.0)).exp().mul_add(n, m);
        let pairs = self.logvar.host().iter().zip(noise.host());
        let data: Vec<f32> = self.mean.host().iter().zip(pairs).map(spread).collect();
        Tensor::from_slice(self.mean.device(), self.mean.shape(), &data)
    }
}

/// Encoder or decoder: a stem, resnets at every size, attention in the middle.
#[derive(Clone, Debug)]
struct Coder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: Mid,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

#[derive(Clone, Debug)]
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

#[derive(Clone, Debug)]
struct Mid {
    first: Resnet,
    norm: GroupNorm,
    attention: Attention,
    second: Resnet,
}

impl Vae {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, config: &VaeConfig) -> Result<Self> {
        let (moments, latent) = (2 * config.latent_channels, config.latent_channels);
        Ok(Vae {
            config: config.clone(),
            encoder: Coder::encoder(&params.at("encoder"), config)?,
            quant_conv: Linear::pointwise(&params.at("quant_conv"), moments, moments)?,
            post_quant_conv: Linear::pointwise(&params.at("post_quant_conv"), latent, latent)?,
            decoder: Coder::decoder(&params.at("decoder"), config)?,
        })
    }

    /// Sizes, and the factor that latents are scaled by for the UNet.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Pixels per latent on a side.
    pub fn downscale(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    /// # Shapes
    /// pictures (B, H, W, 3) in [-1, 1], H and W multiples of [`Self::downscale`].
    ///
    /// # Errors
    /// [`Error::Shape`] for other sizes.
    pub fn encode(&self, pictures: &Tensor) -> Result<Posterior> {
        let multiple = self.downscale();
        if !matches!(pictures.shape()[..], [_, h, w, c] if c == self.config.in_channels && h % multiple == 0 && w % multiple == 0)
        {
            let detail =
                format!("pictures {} are not (B, H, W, 3) with H and W multiples of {multiple}", pictures.shape());
            return Err(Error::shape("vae", detail));
        }
        let moments = each_picture(pictures, |pass, x| {
            let h = self.encoder.conv_in.forward(pass.tape, x, None, None)?;
            let h = self.encoder.run_levels(pass, h, |tape, h, conv| conv.forward(tape, &h, None, None))?;
            let h = self.encoder.mid.forward(pass, &h)?;
            let h = self.encoder.finish(pass, &h)?;
            self.quant_conv.forward(pass, &h, None)
        })?;
        let latent = self.config.latent_channels;
        let half = |from: usize| {
            let rows = moments.host().chunks(2 * latent);
            let data: Vec<f32> = rows.flat_map(|row| &row[from..from + latent]).copied().collect();
            Tensor::from_slice(moments.device(), moments.shape().with_last(latent), &data)
        };
        Ok(Posterior { mean: half(0)?, logvar: half(latent)? })
    }

    /// # Shapes
    /// latents (B, h, w, 4), already divided by the scaling factor -> pictures (B, 8h, 8w, 3), not clamped.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.shape().len() != 4 || latents.shape().last() != self.config.latent_channels {
            return Err(Error::shape("vae", format!("latents {} are not (B, h, w, 4)", latents.shape())));
        }
        each_picture(latents, |pass, x| {
            let h = self.post_quant_conv.forward(pass, x, None)?;
            let h = self.decoder.conv_in.forward(pass.tape, &h, None, None)?;
            let h = self.decoder.mid.forward(pass, &h)?;
            let h = self.decoder.run_levels(pass, h, |tape, h, conv| {
                let shape = h.tensor().shape();
                let h = upsample::apply(tape, &h, 2 * shape[1], 2 * shape[2])?;
                conv.forward(tape, &h, None, None)
            })?;
            self.decoder.finish(pass, &h)
        })
    }
}

/// Runs `work` on one picture after the other: at full size the activations of one fill a gigabyte.
fn each_picture(x: &Tensor, work: impl Fn(&mut Pass, &Var) -> Result<Var>) -> Result<Tensor> {
    let changes = Changes::none();
    let mut outputs = Vec::with_capacity(x.shape()[0]);
    for i in 0..x.shape()[0] {
        let pass = &mut Pass { tape: &mut Tape::off(), changes: &changes };
        outputs.push(work(pass, &Var::constant(x.narrow(i, 1)?))?);
    }
    Tensor::stack_rows(&outputs.iter().map(Var::tensor).collect::<Vec<_>>())
}

fn resnet(params: &Params, inputs: usize, outputs: usize, groups: usize) -> Result<Resnet> {
    Resnet::new(params, ResnetDims { inputs, outputs, time: None, groups, eps: EPS })
}

impl Coder {
    fn encoder(params: &Params, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let groups = config.norm_num_groups;
        let mut width = channels[0];
        let conv_in = Conv2d::same(&params.at("conv_in"), width, config.in_channels)?;
        let mut levels = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let block = params.at(format!("down_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block {
                resnets.push(resnet(&block.at(format!("resnets.{j}")), width, outputs, groups)?);
                width = outputs;
            }
            // padded on the right and below only
            let conv = Conv { stride: 2, padding: [0, 1, 0, 1] };
            let downsample = || Conv2d::new(&block.at("downsamplers.0.conv"), outputs, outputs, 3, conv);
            levels.push(Level { resnets, resample: (i + 1 < channels.len()).then(downsample).transpose()? });
        }
        Ok(Coder {
            conv_in,
            levels,
            mid: Mid::new(&params.at("mid_block"), width, groups)?,
            conv_norm_out: GroupNorm::new(&params.at("conv_norm_out"), width, groups, EPS)?,
            conv_out: Conv2d::same(&params.at("conv_out"), 2 * config.latent_channels, width)?,
        })
    }

    fn decoder(params: &Params, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let groups = config.norm_num_groups;
        let mut width = channels[0];
        let conv_in = Conv2d::same(&params.at("conv_in"), width, config.latent_channels)?;
        let mid = Mid::new(&params.at("mid_block"), width, groups)?;
        let mut levels = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let block = params.at(format!("up_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..=config.layers_per_block {
                resnets.push(resnet(&block.at(format!("resnets.{j}")), width, outputs, groups)?);
                width = outputs;
            }
            let upsample = || Conv2d::same(&block.at("upsamplers.0.conv"), outputs, outputs);
            levels.push(Level { resnets, resample: (i + 1 < channels.len()).then(upsample).transpose()? });
        }
        Ok(Coder {
            conv_in,
            levels,
            mid,
            conv_norm_out: GroupNorm::new(&params.at("conv_norm_out"), width, groups, EPS)?,
            conv_out: Conv2d::same(&params.at("conv_out"), config.out_channels, width)?,
        })
    }

    fn run_levels(
        &self,
        pass: &mut Pass,
        mut h: Var,
        resample: impl Fn(&mut Tape, Var, &Conv2d) -> Result<Var>,
    ) -> Result<Var> {
        for level in &self.levels {
            for resnet in &level.resnets {
                h = resnet.forward(pass, &h, None)?;
            }
            if let Some(conv) = &level.resample {
                h = resample(pass.tape, h, conv)?;
            }
        }
        Ok(h)
    }

    fn finish(&self, pass: &mut Pass, h: &Var) -> Result<Var> {
        let h = self.conv_norm_out.forward_silu(pass.tape, h)?;
        self.conv_out.forward(pass.tape, &h, None, None)
    }
}

impl Mid {
    fn new(params: &Params, channels: usize, groups: usize) -> Result<Self> {
        let attention = params.at("attentions.0");
        Ok(Mid {
            first: resnet(&params.at("resnets.0"), channels, channels, groups)?,
            norm: GroupNorm::new(&attention.at("group_norm"), channels, groups, EPS)?,
            attention: Attention::single(&attention, channels)?,
            second: resnet(&params.at("resnets.1"), channels, channels, groups)?,
        })
    }

    fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let h = self.first.forward(pass, x, None)?;
        let shape = h.tensor().shape();
        let tokens = self.norm.forward(pass.tape, &h)?.reshape([shape[0], shape[1] * shape[2], shape[3]])?;
        let h = self.attention.forward_self(pass, &tokens, &h)?.reshape(shape)?;
        self.second.forward(pass, &h, None)
    }
}

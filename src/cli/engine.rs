//! The models of a job, loaded as its settings say.

use std::time::Instant;

use super::config::Config;
use super::loras;
use super::progress::Reporter;
use crate::data::{Base, Motion, Tokenizer};
use crate::diffusion::{BetaSchedule, Schedule};
use crate::media::Frame;
use crate::model::clip::TextEncoder;
use crate::model::config::{MotionConfig, MotionNorm};
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::nn::{Changes, Params};
use crate::{DType, Device, Error, Philox, Result, Tensor};

/// The denoiser with what is always in force.
pub struct Engine {
    pub device: Device,
    pub unet: UNet,
    pub schedule: Schedule,
    /// The domain adapter, if there is one.
    pub base: Changes,
}

/// Which motion modules a job has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motions {
    /// None: they are not loaded.
    Unused,
    /// They are loaded if given.
    Optional,
    Required,
}

impl Engine {
    /// Loads the UNet.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing path, [`Error::Model`] for files that are not what they should be.
    pub fn load(config: &Config, device: &Device, motions: Motions, reporter: &mut Reporter) -> Result<Self> {
        let begun = Instant::now();
        let base = base(config)?;
        let component = base.unet()?;
        note(reporter, component.note.as_deref());
        if config.is("model.beta_schedule", "linear")
            && let Some(line) = base.scheduler_note()?
        {
            reporter.say(line);
        }
        let (weights, dtype) = (component.weights, dtype(config));
        let build = |motion: Option<(&Params, &MotionConfig)>| {
            weights.load(device, dtype, |params| UNet::new(params, &component.config, motion))
        };
        let unet = match motion(config, motions)? {
            None => build(None)?,
            Some(motion) => {
                note(reporter, motion.note.as_deref());
                let mut sizes = motion.config;
                if let Some(norm) = config.text("model.motion_norm") {
                    sizes.motion_norm = if norm == "video" { MotionNorm::Video } else { MotionNorm::Frame };
                }
                motion.weights.load(device, dtype, |params| build(Some((params, &sizes))))?
            }
        };
        let mut changes = Changes::none();
        if let Some((path, scale)) = config.scaled_path("model.domain_adapter") {
            loras::read(&path, &unet)?.merge(&unet, &mut changes, scale)?;
        }
        let betas =
            if config.is("model.beta_schedule", "linear") { BetaSchedule::Linear } else { BetaSchedule::ScaledLinear };
        reporter.say(format!("loaded the UNet in {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(Engine { device: device.clone(), unet, schedule: Schedule::new(betas), base: changes })
    }

    /// Checks a number of frames against what the motion modules know.
    ///
    /// # Errors
    /// [`Error::Config`] naming `--frames`.
    pub fn check_frames(&self, config: &Config, frames: usize) -> Result<()> {
        match self.unet.max_frames() {
            Some(most) if frames > most => {
                Err(config.error("data.frames", format!("{frames} frames, but the motion module knows at most {most}")))
            }
            _ => Ok(()),
        }
    }
}

fn motion(config: &Config, motions: Motions) -> Result<Option<Motion>> {
    let path = match motions {
        Motions::Unused => None,
        Motions::Optional => config.path("model.motion_module"),
        Motions::Required => Some(config.required_path("model.motion_module", "motion needs it")?),
    };
    path.map(Motion::open).transpose()
}

fn base(config: &Config) -> Result<Base> {
    let dir = config.required_path(
        "model.base",
        "see the README for where to get one, or make a random one with `customttt init-weights`",
    )?;
    let base = Base::open(dir)?;
    Ok(if config.is("precision", "fp16") { base.variant("fp16") } else { base })
}

/// Storage of frozen weights: as asked for, else as the file has them.
pub fn dtype(config: &Config) -> Option<DType> {
    match config.text("precision")? {
        "fp16" => Some(DType::F16),
        _ => Some(DType::F32),
    }
}

fn note(reporter: &mut Reporter, note: Option<&str>) {
    if let Some(note) = note {
        reporter.detail(note);
    }
}

/// Prompts to vectors; the encoder is loaded when the first prompt comes.
pub struct Texts<'c> {
    config: &'c Config,
    device: Device,
    loaded: Option<(Tokenizer, TextEncoder)>,
}

impl<'c> Texts<'c> {
    /// Loads nothing yet.
    pub fn new(config: &'c Config, device: &Device) -> Self {
        Texts { config, device: device.clone(), loaded: None }
    }

    fn load(&mut self) -> Result<&(Tokenizer, TextEncoder)> {
        if self.loaded.is_none() {
            let base = base(self.config)?;
            let part = base.text_encoder()?;
            let (weights, dtype) = (&part.weights, dtype(self.config));
            let encoder = weights.load(&self.device, dtype, |params| TextEncoder::new(params, &part.config))?;
            self.loaded = Some((base.tokenizer()?, encoder));
        }
        Ok(self.loaded.as_ref().expect("the encoder should just have been loaded"))
    }

    /// Encodes prompts; says what a prompt that is too long loses.
    ///
    /// # Shapes
    /// n prompts -> (n, L, D).
    ///
    /// # Errors
    /// Those of loading, the tokenizer and the encoder.
    pub fn encode(&mut self, prompts: &[String], reporter: &mut Reporter) -> Result<Tensor> {
        let ids = self.ids(prompts, reporter)?;
        self.forward(&ids)
    }

    /// Encodes token ids.
    ///
    /// # Errors
    /// Those of loading and the encoder.
    pub fn forward(&mut self, ids: &[Vec<u32>]) -> Result<Tensor> {
        self.load()?.1.forward(ids)
    }

    /// Token ids of prompts, all of one length.
    ///
    /// # Errors
    /// Those of loading and the tokenizer.
    pub fn ids(&mut self, prompts: &[String], reporter: &mut Reporter) -> Result<Vec<Vec<u32>>> {
        let (tokenizer, _) = self.load()?;
        let mut all = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let encoded = tokenizer.encode(prompt)?;
            if let Some(cut) = &encoded.truncated {
                let length = tokenizer.length();
                reporter.warn(format!("the prompt is longer than {length} tokens; this is left out: {cut:?}"));
            }
            all.push(encoded.ids);
        }
        Ok(all)
    }
}

/// Pictures to latents and back.
pub struct Pictures {
    vae: Vae,
    device: Device,
}

impl Pictures {
    /// Loads the VAE.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load(config: &Config, device: &Device) -> Result<Self> {
        let component = base(config)?.vae()?;
        let vae = component.weights.load(device, dtype(config), |p| Vae::new(p, &component.config))?;
        Ok(Pictures { vae, device: device.clone() })
    }

    /// The network.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }

    /// Encodes frames: the posterior is sampled, the noise of frame i being that of step i of `philox`.
    ///
    /// # Shapes
    /// n frames of H x W -> (n, H/8, W/8, 4), scaled.
    ///
    /// # Errors
    /// Those of the network.
    pub fn encode(&self, frames: &[Frame], philox: Philox, mut tick: impl FnMut(usize)) -> Result<Tensor> {
        let factor = self.vae.config().scaling_factor;
        let mut latents = Vec::with_capacity(frames.len());
        for (i, frame) in frames.iter().enumerate() {
            let picture = Tensor::from_slice(&self.device, [1, frame.height, frame.width, 3], &frame.to_values())?;
            let posterior = self.vae.encode(&picture)?;
            let shape = posterior.mean.shape();
            let noise = Tensor::from_slice(&self.device, shape, &philox.normal_vec(i as u32, shape.count()))?;
            let scaled: Vec<f32> = posterior.sample(&noise)?.to_vec().iter().map(|x| x * factor).collect();
            latents.push(Tensor::from_slice(&self.device, shape, &scaled)?);
            tick(i + 1);
        }
        Tensor::stack_rows(&latents.iter().collect::<Vec<_>>())
    }

    /// Decodes scaled latents (F, h, w, 4).
    ///
    /// # Errors
    /// Those of the network; [`Error::NonFinite`] for a picture that is not made of numbers.
    pub fn decode(&self, latents: &Tensor, mut tick: impl FnMut(usize)) -> Result<Vec<Frame>> {
        let factor = self.vae.config().scaling_factor;
        let count = latents.shape()[0];
        let mut frames = Vec::with_capacity(count);
        for i in 0..count {
            let latent = latents.narrow(i, 1)?;
            let unscaled: Vec<f32> = latent.to_vec().iter().map(|x| x / factor).collect();
            let picture = self.vae.decode(&Tensor::from_slice(&self.device, latent.shape(), &unscaled)?)?;
            let values = picture.to_vec();
            if values.iter().any(|v| !v.is_finite()) {
                let tensor = Some("the decoded picture".into());
                return Err(Error::NonFinite { what: "picture", stage: "decoding".into(), step: i, tensor });
            }
            frames.push(Frame::from_values(picture.shape()[2], picture.shape()[1], &values)?);
            tick(i + 1);
        }
        Ok(frames)
    }
}

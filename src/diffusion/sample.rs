//! DDIM sampling (Song et al., 2021; eta 0) with classifier-free guidance (Ho and Salimans, 2022).

use std::ops::ControlFlow;

use super::Schedule;
use crate::model::unet::{Condition, Contexts, Motion, UNet};
use crate::nn::context::Context;
use crate::nn::pass::Changes;
use crate::ops::ddim_step;
use crate::{Error, Result, Tape, Tensor, Var};

/// The prompt to follow, the prompt to leave, and how far: `e = e_u + w (e_c - e_u)`.
#[derive(Debug)]
pub struct Guidance {
    context: Context,
    scale: f32,
}

impl Guidance {
    /// Guidance of weight `scale`; at 1 the prompt alone decides and `uncond` is not evaluated.
    ///
    /// # Shapes
    /// cond, uncond (1, L, D).
    ///
    /// # Errors
    /// [`Error::Shape`] for prompts of different shapes.
    pub fn new(cond: &Tensor, uncond: &Tensor, scale: f32) -> Result<Self> {
        let tokens = if scale == 1.0 { cond.clone() } else { Tensor::stack_rows(&[uncond, cond])? };
        Ok(Guidance { context: Context::new(tokens), scale })
    }

    /// Whether two predictions are made per step.
    fn is_pair(&self) -> bool {
        self.scale != 1.0
    }
}

/// How to sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleConfig {
    /// DDIM steps of a whole run.
    pub steps: usize,
    /// Stop after so many of them; `None` for all.
    pub stop_after: Option<usize>,
    pub motion: Motion,
}

/// Progress of sampling.
#[derive(Clone, Copy, Debug)]
pub struct SampleStep<'s> {
    /// Steps done.
    pub done: usize,
    pub steps: usize,
    /// What those steps made of the noise: [`sample_from`] goes on from it.
    pub latents: &'s Tensor,
}

/// Denoises `latents`, the noise of one video of as many frames as it has rows.
///
/// # Shapes
/// latents (F, h, w, 4), kept; scaled as the UNet takes them.
///
/// # Errors
/// [`Error::Config`] for a number of steps that cannot be; [`Error::NonFinite`] if a latent stops being a
/// number; [`Error::Cancelled`] if `observe` breaks; those of the UNet.
pub fn sample(
    unet: &UNet,
    schedule: &Schedule,
    latents: &Tensor,
    guidance: &Guidance,
    config: SampleConfig,
    changes: &Changes,
    observe: &mut dyn FnMut(SampleStep) -> ControlFlow<()>,
) -> Result<Tensor> {
    sample_from(unet, schedule, latents, 0, guidance, config, changes, observe)
}

/// Goes on from `latents` after `done` steps, to the same bits as if there had been no break.
///
/// # Errors
/// As [`sample`].
#[expect(clippy::too_many_arguments, reason = "one more than sample")]
pub fn sample_from(
    unet: &UNet,
    schedule: &Schedule,
    latents: &Tensor,
    done: usize,
    guidance: &Guidance,
    config: SampleConfig,
    changes: &Changes,
    observe: &mut dyn FnMut(SampleStep) -> ControlFlow<()>,
) -> Result<Tensor> {
    let frames = latents.shape()[0];
    let times = Schedule::ddim_times(config.steps)?;
    let steps = config.stop_after.unwrap_or(config.steps).min(config.steps);
    let mut x = latents.clone();
    for (i, &t) in times[..steps].iter().enumerate().skip(done) {
        let batch = if guidance.is_pair() { Tensor::stack_rows(&[&x, &x])? } else { x.clone() };
        let timesteps = [t as f32; 2];
        let condition = Condition {
            timesteps: if guidance.is_pair() { &timesteps } else { &timesteps[..1] },
            contexts: Contexts::same(&guidance.context),
            frames,
            motion: config.motion,
            changes,
            recompute: false,
        };
        let noise = unet.forward(&mut Tape::off(), &Var::constant(batch), condition)?.tensor().clone();
        let (cond, uncond) = match guidance.is_pair() {
            true => (noise.narrow(frames, frames)?, Some(noise.narrow(0, frames)?)),
            false => (noise, None),
        };
        let (now, after) = (schedule.alpha_bar(t), schedule.alpha_bar_after(t, config.steps));
        x = ddim_step::forward(&x, &cond, uncond.as_ref(), guidance.scale, now, after)?;
        if !x.is_finite() {
            let stage = "sampling".to_string();
            return Err(Error::NonFinite { what: "latents", stage, step: i, tensor: None });
        }
        if observe(SampleStep { done: i + 1, steps, latents: &x }).is_break() {
            return Err(Error::Cancelled { stage: "sampling".into(), step: i + 1 });
        }
    }
    Ok(x)
}

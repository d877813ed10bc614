//! Second stage: the motion of a clip, learned by the temporal LoRA in the motion modules.

use super::step::{Example, Noised, Trainer};
use super::{Observe, Stage, StageConfig, TrainState, streams};
use crate::diffusion::Schedule;
use crate::model::unet::{Motion, UNet};
use crate::nn::{Changes, Context};
use crate::{Philox, Result, Tensor};

/// What the stage learns from.
#[derive(Clone, Copy)]
pub struct TemporalData<'d> {
    /// The encoded clip (F, h, w, 4), scaled.
    pub latents: &'d Tensor,
    /// The motion's prompt, one.
    pub context: &'d Context,
}

/// Random numbers given from outside, one per step; what is `None` is drawn.
#[derive(Clone, Debug, Default)]
pub struct TemporalDraws {
    pub timestep: Option<Vec<usize>>,
    /// Anchor frame of the debiased term.
    pub anchor: Option<Vec<usize>>,
    /// (S*F, h, w, 4)
    pub noise: Option<Tensor>,
}

/// The loss on predicted noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TemporalLoss {
    /// Mean squared error.
    Plain,
    /// The same plus the appearance-debiased term (MotionDirector, section 3).
    #[default]
    Debiased,
}

/// Trains `state` up to step `config.steps`.
///
/// # Errors
/// [`crate::Error::NonFinite`] with `state` as it was before the step; [`crate::Error::Cancelled`] if
/// `observe` breaks; [`crate::Error::Shape`] for data that does not fit.
#[expect(clippy::too_many_arguments, reason = "one argument for each part of the stage")]
pub fn train(
    unet: &UNet,
    base: &Changes,
    schedule: &Schedule,
    data: TemporalData,
    loss: TemporalLoss,
    config: &StageConfig,
    draws: &TemporalDraws,
    state: &mut TrainState,
    observe: &mut Observe,
) -> Result<()> {
    let frames = data.latents.shape()[0];
    let trainer = Trainer { stage: Stage::Temporal, unet, base, config };
    let stream = |n| Philox::new(config.seed, streams::TEMPORAL + n);
    while state.step < config.steps {
        let s = state.step;
        let draw = |given: &Option<Vec<usize>>, n, bound| {
            given.as_ref().map_or_else(|| stream(n).below(s as u32, 0, bound), |d| d[s])
        };
        let t = draw(&draws.timestep, 0, Schedule::TIMES);
        let noise = super::step::noise_like(data.latents, draws.noise.as_ref(), stream(1), s)?;
        let anchor = (loss == TemporalLoss::Debiased).then(|| draw(&draws.anchor, 2, frames));
        let example = Example {
            latents: data.latents,
            noise: &noise,
            noised: Noised::at(schedule, t),
            context: data.context,
            motion: Motion::Auto,
            anchor,
            dropout_stream: streams::TEMPORAL_DROPOUT,
        };
        let (loss, gradients) = trainer.pass(&state.lora, s, &example, None)?;
        let gradients = trainer.finish(state, &[loss], gradients)?;
        trainer.report(state, &[loss], &gradients, observe)?;
    }
    Ok(())
}

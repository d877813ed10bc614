//! First stage: the look of a subject, learned from pictures by the spatial LoRA without motion modules.

use super::step::{Example, Noised, Trainer};
use super::{Observe, Stage, StageConfig, TrainState, streams};
use crate::diffusion::Schedule;
use crate::model::unet::{Motion, UNet};
use crate::nn::{Changes, Context};
use crate::{Error, Philox, Result, Tensor};

/// What the stage learns from.
#[derive(Clone, Copy)]
pub struct SpatialData<'d> {
    /// Encoded pictures (N, h, w, 4), scaled.
    pub latents: &'d Tensor,
    /// The subject's prompt, one.
    pub context: &'d Context,
}

/// Random numbers given from outside, one per step; what is `None` is drawn.
#[derive(Clone, Debug, Default)]
pub struct SpatialDraws {
    /// Which picture; in turn when drawn.
    pub image_index: Option<Vec<usize>>,
    pub timestep: Option<Vec<usize>>,
    /// (S, h, w, 4)
    pub noise: Option<Tensor>,
}

/// Trains `state` up to step `config.steps`.
///
/// # Errors
/// [`Error::NonFinite`] with `state` as it was before the step; [`Error::Cancelled`] if `observe` breaks;
/// [`Error::Shape`] for data that does not fit.
#[expect(clippy::too_many_arguments, reason = "one argument for each part of the stage")]
pub fn train(
    unet: &UNet,
    base: &Changes,
    schedule: &Schedule,
    data: SpatialData,
    config: &StageConfig,
    draws: &SpatialDraws,
    state: &mut TrainState,
    observe: &mut Observe,
) -> Result<()> {
    let pictures = data.latents.shape().first().copied().unwrap_or(0);
    if pictures == 0 {
        return Err(Error::shape("spatial", "there are no pictures to learn from"));
    }
    let trainer = Trainer { stage: Stage::Spatial, unet, base, config };
    let stream = |n| Philox::new(config.seed, streams::SPATIAL + n);
    while state.step < config.steps {
        let s = state.step;
        let picture = draws.image_index.as_ref().map_or(s % pictures, |d| d[s]);
        let latents = data.latents.narrow(picture, 1)?;
        let t = draws.timestep.as_ref().map_or_else(|| stream(0).below(s as u32, 0, Schedule::TIMES), |d| d[s]);
        let noise = super::step::noise_like(&latents, draws.noise.as_ref(), stream(1), s)?;
        let example = Example {
            latents: &latents,
            noise: &noise,
            noised: Noised::at(schedule, t),
            context: data.context,
            motion: Motion::Bypass,
            anchor: None,
            dropout_stream: streams::SPATIAL_DROPOUT,
        };
        let (loss, gradients) = trainer.pass(&state.lora, s, &example, None)?;
        let gradients = trainer.finish(state, &[loss], gradients)?;
        trainer.report(state, &[loss], &gradients, observe)?;
    }
    Ok(())
}

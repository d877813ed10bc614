//! The second stage as DiffDirector has it: a spatial LoRA is trained beside the temporal one, on single frames of the
//! clip, so that it takes up how the clip looks; afterwards it is thrown away.
//!
//! At a fifth of the steps the spatial LoRA sits out: it is neither trained nor in force. Else it learns from one
//! random frame without motion modules, and the temporal LoRA learns with the spatial one, as it was before that, in
//! force and frozen.

use super::step::{Example, Noised, Trainer, noise_like};
use super::temporal::{TemporalData, TemporalDraws, TemporalLoss};
use super::{LoraGradients, Observe, Stage, StageConfig, TrainState, streams};
use crate::diffusion::Schedule;
use crate::model::lora::{Kind, Lora, StepDropout};
use crate::model::unet::{Motion, UNet};
use crate::nn::Changes;
use crate::ops::lion::Lion;
use crate::{Philox, Result, Tape, Tensor};

/// Share of the steps at which the spatial LoRA sits out.
const SITS_OUT: f32 = 0.2;

/// Settings of the stage: those of the temporal stage, and the optimizer of the spatial LoRA.
#[derive(Clone, Debug)]
pub struct JointConfig {
    pub stage: StageConfig,
    pub loss: TemporalLoss,
    pub spatial_lion: Lion,
}

/// Whether the spatial LoRA sits out step `step` of a stage with this seed.
pub fn sits_out(seed: u64, step: usize) -> bool {
    Philox::new(seed, streams::TEMPORAL + 3).uniform(step as u32, 0) < SITS_OUT
}

/// Trains `state`, whose LoRA holds the temporal and the spatial pairs, up to the last step. The losses reported are
/// those of the temporal LoRA.
///
/// # Errors
/// As [`super::temporal::train`].
#[expect(clippy::too_many_arguments, reason = "one argument for each part of the stage")]
pub fn train(
    unet: &UNet,
    base: &Changes,
    schedule: &Schedule,
    data: TemporalData,
    config: &JointConfig,
    draws: &TemporalDraws,
    state: &mut TrainState,
    observe: &mut Observe,
) -> Result<()> {
    let spatial_stage = StageConfig { lion: config.spatial_lion, ..config.stage.clone() };
    let seed = config.stage.seed;
    let frames = data.latents.shape()[0];
    let stream = |n| Philox::new(seed, streams::TEMPORAL + n);
    while state.step < config.stage.steps {
        let s = state.step;
        let [mut temporal, mut spatial] = [Kind::Temporal, Kind::Spatial].map(|kind| part(state, kind));
        let draw = |given: &Option<Vec<usize>>, n, bound| {
            given.as_ref().map_or_else(|| stream(n).below(s as u32, 0, bound), |d| d[s])
        };
        let t = draw(&draws.timestep, 0, Schedule::TIMES);
        let noise = noise_like(data.latents, draws.noise.as_ref(), stream(1), s)?;
        let anchor = (config.loss == TemporalLoss::Debiased).then(|| draw(&draws.anchor, 2, frames));
        let video = Example {
            latents: data.latents,
            noise: &noise,
            noised: Noised::at(schedule, t),
            context: data.context,
            motion: Motion::Auto,
            anchor,
            dropout_stream: streams::TEMPORAL_DROPOUT,
        };
        let mut around = base.clone();
        let mut spatial_gradients = zeros_like(&spatial.lora);
        if sits_out(seed, s) {
            spatial.step += 1;
        } else {
            let dropout = config.stage.dropout;
            let stream_of = |n| StepDropout { seed, stream: streams::TEMPORAL_DROPOUT + n, step: s as u32, p: dropout };
            spatial.lora.attach(&mut Tape::off(), &mut around, 1.0, Some(stream_of(0xC000)));
            let j = stream(3).below(s as u32, 1, frames);
            let (frame, frame_noise) = (data.latents.narrow(j, 1)?, noise.narrow(j, 1)?);
            let picture = Example {
                latents: &frame,
                noise: &frame_noise,
                motion: Motion::Bypass,
                anchor: None,
                dropout_stream: streams::TEMPORAL_DROPOUT + 0x8000,
                ..video
            };
            let trainer = Trainer { stage: Stage::Temporal, unet, base, config: &spatial_stage };
            let (loss, gradients) = trainer.pass(&spatial.lora, s, &picture, None)?;
            spatial_gradients = trainer.finish(&mut spatial, &[loss], gradients)?;
        }
        let trainer = Trainer { stage: Stage::Temporal, unet, base: &around, config: &config.stage };
        let (loss, gradients) = trainer.pass(&temporal.lora, s, &video, None)?;
        let temporal_gradients = trainer.finish(&mut temporal, &[loss], gradients)?;
        *state = joined(temporal, spatial);
        let gradients = LoraGradients { pairs: [temporal_gradients.pairs, spatial_gradients.pairs].concat() };
        trainer.report(state, &[loss], &gradients, observe)?;
    }
    Ok(())
}

/// The part of a state that belongs to one kind of LoRA.
fn part(state: &TrainState, kind: Kind) -> TrainState {
    let lora = state.lora.of_kind(kind);
    let of_kind = |(pair, _): &(&crate::model::lora::LoraPair, &(Tensor, Tensor))| {
        lora.pairs.iter().any(|own| own.module == pair.module)
    };
    let momenta = state.lora.pairs.iter().zip(&state.momenta).filter(of_kind).map(|(_, m)| m.clone()).collect();
    TrainState { lora, momenta, step: state.step }
}

fn joined(temporal: TrainState, spatial: TrainState) -> TrainState {
    TrainState {
        lora: Lora { pairs: [temporal.lora.pairs, spatial.lora.pairs].concat() },
        momenta: [temporal.momenta, spatial.momenta].concat(),
        step: temporal.step,
    }
}

fn zeros_like(lora: &Lora) -> LoraGradients {
    let zeros = |t: &Tensor| Tensor::zeros(t.device(), t.shape());
    LoraGradients { pairs: lora.pairs.iter().map(|p| (zeros(&p.down), zeros(&p.up))).collect() }
}

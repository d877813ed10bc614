//! The part of a training step that all stages share: predict the noise that was added, compare, go back.

use super::optim::{LoraGradients, Partial};
use super::{Stage, StageConfig, StepReport, TrainState};
use crate::diffusion::Schedule;
use crate::model::lora::{Lora, StepDropout};
use crate::model::unet::{Condition, Contexts, Motion, UNet};
use crate::nn::{Changes, Context};
use crate::ops::{loss, q_sample};
use crate::{Error, Philox, Result, Tape, Tensor, Var};

/// One noised latent, and how it is shown to the network.
pub(super) struct Example<'e> {
    /// (F, h, w, 4), clean.
    pub latents: &'e Tensor,
    /// The noise to add and to predict, of the same shape.
    pub noise: &'e Tensor,
    pub noised: Noised,
    pub context: &'e Context,
    pub motion: Motion,
    /// Anchor frame of the appearance-debiased term, if that is in the loss.
    pub anchor: Option<usize>,
    /// Stream of the dropout masks.
    pub dropout_stream: u32,
}

/// How the latents were or are to be noised.
#[derive(Clone, Copy)]
pub(super) struct Noised {
    /// Time that the network is told.
    pub t: usize,
    /// Share of signal power that the latents keep.
    pub keep: f64,
}

impl Noised {
    /// The forward process at time `t`.
    pub(super) fn at(schedule: &Schedule, t: usize) -> Self {
        Noised { t, keep: schedule.alpha_bar(t) }
    }
}

/// What stays the same over a stage.
pub(super) struct Trainer<'t> {
    pub stage: Stage,
    pub unet: &'t UNet,
    /// Changes in force beside the trained LoRA.
    pub base: &'t Changes,
    pub config: &'t StageConfig,
}

impl Trainer<'_> {
    /// Loss of `example` under `lora`, and its gradient added to `sum`.
    pub(super) fn pass(
        &self,
        lora: &Lora,
        step: usize,
        example: &Example,
        sum: Option<Partial>,
    ) -> Result<(f32, Partial)> {
        let Example { latents, noise, noised, context, motion, anchor, dropout_stream } = *example;
        let frames = latents.shape()[0];
        let noisy = Var::constant(q_sample::forward(latents, noise, noised.keep)?);
        let dropout =
            StepDropout { seed: self.config.seed, stream: dropout_stream, step: step as u32, p: self.config.dropout };
        let timesteps = [noised.t as f32];
        let mut changes = self.base.clone();
        let mut tape = Tape::new();
        let attached = lora.attach(&mut tape, &mut changes, 1.0, Some(dropout));
        let condition = Condition {
            timesteps: &timesteps,
            contexts: Contexts::same(context),
            frames,
            motion,
            changes: &changes,
            recompute: self.config.recompute,
        };
        let prediction = self.unet.forward(&mut tape, &noisy, condition)?;
        let (loss, gradient) = loss::forward(prediction.tensor(), noise, frames, anchor, 1.0)?;
        if !loss.is_finite() {
            return Err(self.non_finite("loss", step, lora, &[("latents", latents), ("prompt", context.tokens())]));
        }
        let mut grads = tape.backward(&[(&prediction, gradient)])?;
        Ok((loss, Partial::collect(&attached, &mut grads, sum)?))
    }

    /// Takes the optimizer step and reports it. A non-finite gradient leaves the state as it was.
    pub(super) fn finish(&self, state: &mut TrainState, losses: &[f32], gradients: Partial) -> Result<LoraGradients> {
        let gradients = gradients.complete(&state.lora)?;
        let bad = |(pair, (down, up)): (&crate::model::lora::LoraPair, &(Tensor, Tensor))| {
            let leaf = if !down.is_finite() {
                "lora_A"
            } else if !up.is_finite() {
                "lora_B"
            } else {
                return None;
            };
            Some(format!("{}.{leaf}", pair.module))
        };
        if let Some(name) = state.lora.pairs.iter().zip(&gradients.pairs).find_map(bad) {
            let stage = self.stage.to_string();
            return Err(Error::NonFinite { what: "gradient", stage, step: state.step, tensor: Some(name) });
        }
        debug_assert!(losses.iter().all(|l| l.is_finite()));
        state.update(&gradients, self.config.lion)?;
        Ok(gradients)
    }

    /// Reports a finished step; stops the stage if the caller asks for it.
    pub(super) fn report(
        &self,
        state: &TrainState,
        losses: &[f32],
        gradients: &LoraGradients,
        observe: &mut super::Observe,
    ) -> Result<()> {
        let (stage, steps) = (self.stage, self.config.steps);
        let report = StepReport { stage, step: state.step - 1, steps, losses, gradients, state };
        if observe(&report).is_break() && state.step < steps {
            return Err(Error::Cancelled { stage: stage.to_string(), step: state.step });
        }
        Ok(())
    }

    /// The error for a number that is none, with the first culprit among inputs and factors.
    fn non_finite(&self, what: &'static str, step: usize, lora: &Lora, inputs: &[(&str, &Tensor)]) -> Error {
        let inputs = inputs.iter().map(|(name, t)| (name.to_string(), *t));
        let factors = lora
            .pairs
            .iter()
            .flat_map(|p| [(format!("{}.lora_A", p.module), &p.down), (format!("{}.lora_B", p.module), &p.up)]);
        let culprit = inputs.chain(factors).find(|(_, t)| !t.is_finite()).map(|(name, _)| name);
        let tensor = culprit.or_else(|| Some("the UNet's prediction".into()));
        Error::NonFinite { what, stage: self.stage.to_string(), step, tensor }
    }
}

/// Noise of the shape of `like` for step `step`: the step's rows of `given`, or drawn.
pub(super) fn noise_like(like: &Tensor, given: Option<&Tensor>, philox: Philox, step: usize) -> Result<Tensor> {
    let rows = like.shape()[0];
    match given {
        Some(noise) => noise.narrow(step * rows, rows),
        None => Tensor::from_slice(like.device(), like.shape(), &philox.normal_vec(step as u32, like.shape().count())),
    }
}

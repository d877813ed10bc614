//! Third stage: test-time training of both LoRAs together (CustomTTT, method figure (c)).
//!
//! Every step draws two reference latents from frozen teachers, the network with the spatial LoRA alone and
//! without motion modules, and the network with the temporal LoRA alone. Noise is added to them, and the
//! student, which has both LoRAs, learns to predict that noise under the prompt that names subject and motion.

use std::ops::ControlFlow;

use super::step::{Example, Noised, Trainer, noise_like};
use super::temporal::TemporalLoss;
use super::{Observe, Stage, StageConfig, TrainState, streams};
use crate::diffusion::{Guidance, SampleConfig, SampleStep, Schedule, sample};
use crate::model::lora::Lora;
use crate::model::unet::{Motion, UNet};
use crate::nn::{Changes, Context};
use crate::{Error, Philox, Result, Tensor};

/// What the stage works from.
#[derive(Clone, Copy)]
pub struct TttData<'d> {
    /// The LoRAs as trained before: the teachers keep them through all steps.
    pub spatial: &'d Lora,
    pub temporal: &'d Lora,
    /// Encoded prompts (n, L, D) to choose from at every step: the subject doing something.
    pub appearance: &'d Tensor,
    /// Somebody in the clip's motion.
    pub motion: &'d Tensor,
    /// The subject in the clip's motion.
    pub student: &'d Tensor,
    /// The empty prompt.
    pub uncond: &'d Tensor,
    /// Frames, rows and columns of latents, channels.
    pub latent: [usize; 4],
}

/// Random numbers given from outside, one per step; what is `None` is drawn.
#[derive(Clone, Debug, Default)]
pub struct TttDraws {
    /// Which of the prompts, in the order appearance, motion, student, uncond.
    pub prompts: [Option<Vec<usize>>; 4],
    /// The references' initial noise (S*F, h, w, 4).
    pub start_appearance: Option<Tensor>,
    pub start_motion: Option<Tensor>,
    pub timestep_appearance: Option<Vec<usize>>,
    pub timestep_motion: Option<Vec<usize>>,
    /// The noise added to the references (S*F, h, w, 4).
    pub noise_appearance: Option<Tensor>,
    pub noise_motion: Option<Tensor>,
    /// Anchor frame of the debiased term, if that is in the motion loss.
    pub anchor: Option<Vec<usize>>,
}

/// Settings of the stage.
#[derive(Clone, Debug)]
pub struct TttConfig {
    pub stage: StageConfig,
    /// DDIM steps of a reference: the paper's f.
    pub reference_steps: usize,
    /// Guidance weight of a reference; 1 is none.
    pub reference_cfg: f32,
    pub reference: Reference,
    /// Draw new references at every step, instead of once.
    pub fresh_references: bool,
    /// Frames of the appearance reference, each a picture of its own; `None` for as many as the video has.
    pub appearance_frames: Option<usize>,
    /// Whether the student's motion modules act on the appearance reference.
    pub appearance_motion: bool,
    pub motion_loss: TemporalLoss,
}

/// What a reference latent is, and how noise is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A whole run of `reference_steps` DDIM steps: a clean latent, noised at a random time.
    Clean,
    /// The first `reference_steps` of a run of `grid` steps: a noisy latent, taken one forward step back.
    Partial { grid: usize },
}

impl Default for TttConfig {
    fn default() -> Self {
        TttConfig {
            stage: StageConfig::paper(Stage::Ttt),
            reference_steps: 5,
            reference_cfg: 9.0,
            reference: Reference::Clean,
            fresh_references: true,
            appearance_frames: None,
            appearance_motion: true,
            motion_loss: TemporalLoss::Plain,
        }
    }
}

/// The two halves of a step.
#[derive(Clone, Copy)]
enum Half {
    Appearance,
    Motion,
}

struct Ttt<'t> {
    trainer: Trainer<'t>,
    schedule: &'t Schedule,
    data: TttData<'t>,
    config: &'t TttConfig,
    draws: &'t TttDraws,
    /// Teachers' changes: appearance, motion.
    teachers: [Changes; 2],
}

/// Trains `state`, whose LoRA holds the spatial pairs and the temporal pairs, up to the last step.
///
/// # Errors
/// [`Error::NonFinite`] with `state` as it was before the step; [`Error::Cancelled`] if `observe` breaks;
/// [`Error::Config`] for reference steps that cannot be; [`Error::Shape`] for data that does not fit.
#[expect(clippy::too_many_arguments, reason = "one argument for each part of the stage")]
pub fn train(
    unet: &UNet,
    base: &Changes,
    schedule: &Schedule,
    data: TttData,
    config: &TttConfig,
    draws: &TttDraws,
    state: &mut TrainState,
    observe: &mut Observe,
) -> Result<()> {
    let trainer = Trainer { stage: Stage::Ttt, unet, base, config: &config.stage };
    let mut teachers = [base.clone(), base.clone()];
    data.spatial.merge(unet, &mut teachers[0], 1.0)?;
    data.temporal.merge(unet, &mut teachers[1], 1.0)?;
    let ttt = Ttt { trainer, schedule, data, config, draws, teachers };
    let mut kept: [Option<Tensor>; 2] = [None, None];
    while state.step < config.stage.steps {
        let s = state.step;
        let (mut losses, mut gradients) = ([0.0; 2], None);
        for (half, kept) in [Half::Appearance, Half::Motion].into_iter().zip(&mut kept) {
            let reference = match kept.take() {
                Some(reference) => reference,
                None => ttt.reference(half, if config.fresh_references { s } else { 0 })?,
            };
            let (loss, sum) = ttt.half_step(half, &reference, state, gradients)?;
            losses[half as usize] = loss;
            gradients = Some(sum);
            *kept = (!config.fresh_references).then_some(reference);
        }
        let gradients = ttt.trainer.finish(state, &losses, gradients.expect("a step should have two halves"))?;
        ttt.trainer.report(state, &losses, &gradients, observe)?;
    }
    Ok(())
}

impl Ttt<'_> {
    /// The latents a teacher draws for step `s`: (F, h, w, 4).
    fn reference(&self, half: Half, s: usize) -> Result<Tensor> {
        let [frames, h, w, c] = self.data.latent;
        let (frames, start, prompts, which, motion) = match half {
            Half::Appearance => {
                let frames = self.config.appearance_frames.unwrap_or(frames);
                (frames, &self.draws.start_appearance, self.data.appearance, 0, Motion::Bypass)
            }
            Half::Motion => (frames, &self.draws.start_motion, self.data.motion, 1, Motion::Auto),
        };
        let device = self.trainer.unet.device();
        let noise = match start {
            Some(given) => given.narrow(s * frames, frames)?,
            None => {
                let drawn = self.stream(which).normal_vec(s as u32, frames * h * w * c);
                Tensor::from_slice(device, [frames, h, w, c], &drawn)?
            }
        };
        let guidance = Guidance::new(
            &self.prompt(prompts, which, s)?,
            &self.prompt(self.data.uncond, 3, s)?,
            self.config.reference_cfg,
        )?;
        let config = match self.config.reference {
            Reference::Clean => SampleConfig { steps: self.config.reference_steps, stop_after: None, motion },
            Reference::Partial { grid } => {
                SampleConfig { steps: grid, stop_after: Some(self.config.reference_steps), motion }
            }
        };
        let teacher = &self.teachers[half as usize];
        let go_on = &mut |_: SampleStep| ControlFlow::Continue(());
        sample(self.trainer.unet, self.schedule, &noise, &guidance, config, teacher, go_on)
    }

    /// Loss of the student on a reference, and its gradient added to `sum`.
    fn half_step(
        &self,
        half: Half,
        reference: &Tensor,
        state: &TrainState,
        sum: Option<super::optim::Partial>,
    ) -> Result<(f32, super::optim::Partial)> {
        let s = state.step;
        let (timestep, noise, stream, dropout_stream) = match half {
            Half::Appearance => {
                let d = self.draws;
                (&d.timestep_appearance, &d.noise_appearance, 4, streams::TTT_APPEARANCE_DROPOUT)
            }
            Half::Motion => (&self.draws.timestep_motion, &self.draws.noise_motion, 5, streams::TTT_MOTION_DROPOUT),
        };
        let draw = |given: &Option<Vec<usize>>, index, bound| {
            given.as_ref().map_or_else(|| self.stream(6).below(s as u32, index, bound), |d| d[s])
        };
        let noised = match self.config.reference {
            Reference::Clean => Noised::at(self.schedule, draw(timestep, half as u64, Schedule::TIMES)),
            Reference::Partial { grid } => self.one_step_back(grid)?,
        };
        let anchor = match (half, self.config.motion_loss) {
            (Half::Motion, TemporalLoss::Debiased) => Some(draw(&self.draws.anchor, 2, reference.shape()[0])),
            _ => None,
        };
        let motion = match half {
            Half::Appearance if !self.config.appearance_motion => Motion::Bypass,
            _ => Motion::Auto,
        };
        let noise = noise_like(reference, noise.as_ref(), self.stream(stream), s)?;
        let context = Context::new(self.prompt(self.data.student, 2, s)?);
        let example =
            Example { latents: reference, noise: &noise, noised, context: &context, motion, anchor, dropout_stream };
        self.trainer.pass(&state.lora, s, &example, sum)
    }

    /// From the level after `reference_steps` steps of the grid to the level one step before.
    fn one_step_back(&self, grid: usize) -> Result<Noised> {
        let times = Schedule::ddim_times(grid)?;
        let f = self.config.reference_steps;
        if f == 0 || f > grid {
            return Err(Error::config("ref-steps", format!("{f} of a run of {grid} steps")));
        }
        let t = times[f - 1];
        let reached = self.schedule.alpha_bar_after(t, grid);
        Ok(Noised { t, keep: self.schedule.alpha_bar(t) / reached })
    }

    /// The prompt of step `s` among `prompts`.
    fn prompt(&self, prompts: &Tensor, which: usize, s: usize) -> Result<Tensor> {
        let count = prompts.shape()[0];
        let drawn = || if count == 1 { 0 } else { self.stream(7).below(s as u32, which as u64, count) };
        prompts.narrow(self.draws.prompts[which].as_ref().map_or_else(drawn, |d| d[s]), 1)
    }

    fn stream(&self, n: usize) -> Philox {
        Philox::new(self.config.stage.seed, streams::TTT + n as u32)
    }
}

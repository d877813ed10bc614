//! The three stages of the method, one file each: the look of a subject, the motion of a clip, and both
//! adapted together at test time.
//!
//! Every random number is a function of (seed, stream, step, index), so a stage can be stopped after any
//! step and go on from its [`TrainState`] to the same bits.

pub mod joint;
mod optim;
pub mod spatial;
mod step;
pub mod temporal;
pub mod ttt;

use std::ops::ControlFlow;

pub use optim::{LoraGradients, TrainState};

use crate::ops::lion::Lion;

/// Streams of random numbers, one for every use.
pub mod streams {
    pub const SPATIAL_INIT: u32 = 1;
    pub const TEMPORAL_INIT: u32 = 2;
    /// Noise of the VAE's posterior: pictures, then the clip.
    pub const PICTURE_LATENTS: u32 = 3;
    pub const CLIP_LATENTS: u32 = 4;
    /// The initial noise of the video.
    pub const SAMPLE: u32 = 5;
    /// Eight streams of each stage, from these on; see the stages.
    pub const SPATIAL: u32 = 16;
    pub const TEMPORAL: u32 = 24;
    pub const TTT: u32 = 32;
    /// One stream for every adapted layer, from these on.
    pub const SPATIAL_DROPOUT: u32 = 1 << 16;
    pub const TEMPORAL_DROPOUT: u32 = 2 << 16;
    pub const TTT_APPEARANCE_DROPOUT: u32 = 3 << 16;
    pub const TTT_MOTION_DROPOUT: u32 = 4 << 16;
}

/// A stage of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Spatial,
    Temporal,
    Ttt,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Spatial => "spatial",
            Stage::Temporal => "temporal",
            Stage::Ttt => "ttt",
        })
    }
}

/// Settings that all stages share.
#[derive(Clone, Debug)]
pub struct StageConfig {
    /// Steps of the whole stage.
    pub steps: usize,
    pub lion: Lion,
    /// Probability of zeroing an element of a low-rank product.
    pub dropout: f32,
    pub seed: u64,
    /// Recompute every UNet block in the backward pass: less memory, a third more time.
    pub recompute: bool,
}

impl StageConfig {
    /// The paper's settings (supplement, section 1) for `stage`.
    pub fn paper(stage: Stage) -> Self {
        let (steps, lr) = match stage {
            Stage::Spatial => (500, 1e-5),
            Stage::Temporal => (500, 5e-5),
            Stage::Ttt => (30, 1e-6),
        };
        let lion = Lion { lr, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };
        StageConfig { steps, lion, dropout: 0.1, seed: 0, recompute: false }
    }
}

/// What a finished step hands to the caller.
pub struct StepReport<'r> {
    pub stage: Stage,
    /// Number of the step, from 0.
    pub step: usize,
    /// Steps of the whole stage.
    pub steps: usize,
    /// Loss, or appearance and motion loss of test-time training.
    pub losses: &'r [f32],
    /// Gradients that the step used, not scaled.
    pub gradients: &'r LoraGradients,
    /// State after the step.
    pub state: &'r TrainState,
}

/// Called after every step; to break ends the stage, whose state stays good to go on from.
pub type Observe<'o> = dyn FnMut(&StepReport) -> ControlFlow<()> + 'o;

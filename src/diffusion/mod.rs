//! The noise schedule and sampling.

mod sample;
mod schedule;

pub use sample::{Guidance, SampleConfig, SampleStep, sample, sample_from};
pub use schedule::{BetaSchedule, Schedule};

//! The noise schedule and sampling.

mod sample;
mod schedule;

pub use sample::{Guidance, SampleConfig, SampleStep, sample};
pub use schedule::{BetaSchedule, Schedule};

//! Layers: parameters, and calls to operations.

pub mod params;
pub mod rule;

pub use params::{Fetched, ParamSource, Params, Recorder};
pub use rule::RuleWeights;

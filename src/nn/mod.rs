//! Layers: parameters, and calls to operations.

pub mod attention;
pub mod context;
pub mod layer;
pub mod params;
pub mod pass;
pub mod resnet;
pub mod rule;
pub mod transformer;

pub use context::Context;
pub use params::{Fetched, ParamSource, Params, Recorder};
pub use pass::{Change, Changes, Pass};
pub use rule::RuleWeights;

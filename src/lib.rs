//! CustomTTT: motion and appearance customised video generation via test-time training.

pub mod cli;
pub mod data;
pub mod device;
pub mod diffusion;
mod dtype;
mod error;
mod fs;
mod host;
pub mod media;
pub mod model;
pub mod nn;
pub mod ops;
mod rng;
mod shape;
pub mod tape;
mod tensor;
pub mod train;
mod weight;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use host::HostData;
pub use rng::Philox;
pub use shape::Shape;
pub use tape::{Grads, Tape, Var};
pub use tensor::Tensor;
pub use weight::Weight;

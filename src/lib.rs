//! CustomTTT: motion and appearance customised video generation via test-time training, on an engine of its own.
//!
//! Modules, from base to top; each imports only from those before it:
//!
//! - [`Error`], [`Shape`], [`DType`], [`Philox`]: values that everything shares.
//! - [`device`], [`Tensor`], [`Weight`]: memory and threads; dense f32 tensors, channels-last; frozen packed weights.
//! - [`tape`]: reverse-mode differentiation for networks that are frozen but for small matrices.
//! - [`ops`]: one fused operation per file, each with the specification that tests, checks and benchmarks run.
//! - [`nn`], [`model`]: layers, the UNet with motion modules, autoencoder, CLIP, LoRA.
//! - [`diffusion`]: the noise schedule and DDIM.
//! - [`data`], [`media`]: weight, LoRA and tensor files; pictures and clips.
//! - [`train`]: the method's three stages, one file each.
//! - [`cli`]: the `customttt` program.
//!
//! What holds everywhere: frozen weights are never differentiated, and nothing is saved or computed backwards below the
//! first adapted layer; the bits of a result depend neither on the number of threads nor on the run; every random
//! number is a function of (seed, stream, step, index); below [`cli`], nothing prints, exits or keeps global state.

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

//! CustomTTT: motion and appearance customised video generation via test-time training.

pub mod device;
mod dtype;
mod error;
mod shape;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;

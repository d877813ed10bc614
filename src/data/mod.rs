//! Files: weights, LoRA, tokenizers and named tensors.

mod checkpoint;
mod family;
pub mod folder;
pub mod init;
mod motion;
mod names;
pub mod safetensors;
mod tokenizer;

pub use checkpoint::Checkpoint;
pub use family::Family;
pub use folder::{Base, Component};
pub use motion::Motion;
pub use tokenizer::{Encoded, Tokenizer};

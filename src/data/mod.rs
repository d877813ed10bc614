//! Files: weights, LoRA, tokenizers and named tensors.

mod checkpoint;
mod family;
pub mod folder;
pub mod init;
mod lora;
mod motion;
mod names;
pub mod safetensors;
mod tensors;
mod tokenizer;

pub use checkpoint::Checkpoint;
pub use family::Family;
pub use folder::{Base, Component};
pub use lora::{LoraFile, LoraTensor, check_layers};
pub use motion::Motion;
pub use tensors::{NamedTensors, TensorWriter};
pub use tokenizer::{Encoded, Tokenizer};

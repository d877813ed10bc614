//! The networks. Parameter names equal the checkpoint keys.

mod block;
pub mod clip;
pub mod config;
pub mod lora;
pub mod unet;
pub mod vae;

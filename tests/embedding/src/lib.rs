//! A small network and its conditions, for the examples and tests beside.

use customttt::model::config::{MotionConfig, UNetConfig, VaeConfig};
use customttt::model::unet::UNet;
use customttt::model::vae::Vae;
use customttt::nn::{Params, Recorder, RuleWeights};
use customttt::{Device, Philox, Result, Tensor};

/// Width of the prompts that [`unet`] reads.
pub const TEXT_WIDTH: usize = 48;

/// A video UNet of test size with reproducible weights.
///
/// # Errors
/// None that a correct library would report.
pub fn unet(device: &Device) -> Result<UNet> {
    let config = UNetConfig {
        block_out_channels: vec![32, 64, 64, 96],
        cross_attention_dim: TEXT_WIDTH,
        norm_num_groups: 16,
        ..UNetConfig::default()
    };
    let motion = MotionConfig {
        block_out_channels: config.block_out_channels.clone(),
        use_motion_mid_block: false,
        ..MotionConfig::default()
    };
    filled(device, |params| UNet::new(params, &config, Some((params, &motion))))
}

/// An autoencoder of test size.
///
/// # Errors
/// None that a correct library would report.
pub fn vae(device: &Device) -> Result<Vae> {
    let config = VaeConfig {
        block_out_channels: vec![16, 32, 32, 32],
        layers_per_block: 2,
        norm_num_groups: 16,
        ..VaeConfig::default()
    };
    filled(device, |params| Vae::new(params, &config))
}

/// Builds a model twice: to learn the names of its parameters, and to fill them.
fn filled<M>(device: &Device, build: impl Fn(&Params) -> Result<M>) -> Result<M> {
    let names = Recorder::new();
    build(&Params::new(&names, device, None))?;
    build(&Params::new(&RuleWeights::new(&names.names(), 1.0), device, None))
}

/// Standard normals of the given shape.
///
/// # Errors
/// None that a correct library would report.
pub fn noise(device: &Device, stream: u32, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    Tensor::from_slice(device, shape, &Philox::new(7, stream).normal_vec(0, count))
}

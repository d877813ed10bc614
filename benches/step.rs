//! Times whole networks of full size on random weights:
//! `cargo bench --bench step -- [FILTER] [--only NAME,NAME] [--json] [--threads N] [--f32] [--seconds S]`.
//!
//! - `unet2d_forward`: the image UNet, one 256x256 picture (32x32 latents);
//! - `spatial_step`: the same with the spatial LoRA (rank 32, blocks 2 and 6): forward, backward, Lion;
//! - `video_forward`: the video UNet, 16 frames;
//! - `vae_decode`: one frame.
//!
//! Weights are stored as f16 unless `--f32`; arithmetic is f32.

mod harness;

use std::ops::ControlFlow;

use customttt::diffusion::Schedule;
use customttt::model::config::{MotionConfig, UNetConfig, VaeConfig};
use customttt::model::lora::{Lora, Targets};
use customttt::model::unet::{Condition, Contexts, Motion, UNet};
use customttt::model::vae::Vae;
use customttt::nn::{Changes, Context, Params, Recorder, RuleWeights};
use customttt::train::spatial::{self, SpatialData, SpatialDraws};
use customttt::train::{Stage, StageConfig, StepReport, TrainState};
use customttt::{Device, Error, Philox, Result, Tape, Tensor, Var};
use harness::Args;

const FRAMES: usize = 16;
const SIDE: usize = 32;

fn filled<M>(args: &Args, device: &Device, build: impl Fn(&Params) -> Result<M>) -> Result<M> {
    let names = Recorder::new();
    build(&Params::new(&names, device, None))?;
    build(&Params::new(&RuleWeights::new(&names.names(), 0.5), device, Some(args.dtype)))
}

fn normals(device: &Device, stream: u32, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_slice(device, shape, &Philox::new(1, stream).normal_vec(0, shape.iter().product()))
}

fn forward(unet: &UNet, x: &Tensor, context: &Context, frames: usize) -> Result<()> {
    let none = Changes::none();
    let contexts = Contexts::same(context);
    let condition =
        Condition { timesteps: &[500.0], contexts, frames, motion: Motion::Auto, changes: &none, recompute: false };
    unet.forward(&mut Tape::off(), &Var::constant(x.clone()), condition).map(drop)
}

fn picture(args: &Args, device: &Device) -> Result<()> {
    if !args.wants("unet2d_forward") && !args.wants("spatial_step") {
        return Ok(());
    }
    let unet = filled(args, device, |p| UNet::new(p, &UNetConfig::default(), None))?;
    let (x, context) = (normals(device, 1, &[1, SIDE, SIDE, 4])?, Context::new(normals(device, 2, &[1, 77, 768])?));
    if args.wants("unet2d_forward") {
        args.measure("unet2d_forward", 180_000_000_000, 0, || forward(&unet, &x, &context, 1))?;
    }
    if args.wants("spatial_step") {
        let lora = Lora::init(device, &Targets::spatial().layers(&unet)?, 32, Philox::new(1, 3))?;
        let mut state = TrainState::new(lora);
        let data = SpatialData { latents: &x, context: &context };
        let (schedule, draws, none) = (Schedule::default(), SpatialDraws::default(), Changes::none());
        args.measure("spatial_step", 290_000_000_000, 0, || {
            let steps = state.step + 1;
            let config = StageConfig { steps, dropout: 0.0, ..StageConfig::paper(Stage::Spatial) };
            let go_on = &mut |_: &StepReport| ControlFlow::Continue(());
            spatial::train(&unet, &none, &schedule, data, &config, &draws, &mut state, go_on)
        })?;
    }
    Ok(())
}

fn video(args: &Args, device: &Device) -> Result<()> {
    if !args.wants("video_forward") {
        return Ok(());
    }
    let motion = MotionConfig { use_motion_mid_block: false, ..MotionConfig::default() };
    let unet = filled(args, device, |p| UNet::new(p, &UNetConfig::default(), Some((p, &motion))))?;
    let x = normals(device, 1, &[FRAMES, SIDE, SIDE, 4])?;
    let context = Context::new(normals(device, 2, &[1, 77, 768])?);
    args.measure("video_forward", 4_090_000_000_000, 0, || forward(&unet, &x, &context, FRAMES))
}

fn autoencoder(args: &Args, device: &Device) -> Result<()> {
    if !args.wants("vae_decode") {
        return Ok(());
    }
    let config =
        VaeConfig { block_out_channels: vec![128, 256, 512, 512], layers_per_block: 2, ..VaeConfig::default() };
    let vae = filled(args, device, |p| Vae::new(p, &config))?;
    let x = normals(device, 1, &[1, SIDE, SIDE, 4])?;
    args.measure("vae_decode", 622_000_000_000, 0, || vae.decode(&x).map(drop))
}

fn main() -> Result<(), Error> {
    let Some(args) = Args::parse() else {
        eprintln!("usage: step [FILTER] [--only NAME,NAME] [--json] [--threads N] [--f32] [--seconds S]");
        std::process::exit(2);
    };
    let device = Device::cpu(args.threads)?;
    device.run(|| {
        picture(&args, &device)?;
        video(&args, &device)?;
        autoencoder(&args, &device)
    })
}

//! Samples a video with progress and a way to cancel, and writes it as an animation.
//!
//! The weights are not trained, so the picture is abstract; with a real model only the loading differs.

use std::ops::ControlFlow;
use std::path::Path;

use customttt::diffusion::{Guidance, SampleConfig, Schedule, sample};
use customttt::media::{Frame, write_gif};
use customttt::model::unet::Motion;
use customttt::nn::Changes;
use customttt::{Device, Result};
use embedding::{TEXT_WIDTH, noise, unet, vae};

const FRAMES: usize = 4;
const LATENT: usize = 8; // rows and columns

fn main() -> Result<()> {
    let path = std::env::temp_dir().join("sample.gif");
    run(&path, |done, steps| {
        println!("step {done} of {steps}");
        true
    })?;
    println!("{}", path.display());
    Ok(())
}

/// Samples into `path`; `go_on` hears of every step and can stop the work by returning false.
///
/// # Errors
/// `Error::Cancelled` if stopped; those of the library.
pub fn run(path: &Path, mut go_on: impl FnMut(usize, usize) -> bool) -> Result<()> {
    let device = Device::cpu(None)?;
    let (unet, vae) = (unet(&device)?, vae(&device)?);
    let prompt = noise(&device, 0, &[1, 77, TEXT_WIDTH])?; // a text encoder's output stands here
    let nothing = noise(&device, 1, &[1, 77, TEXT_WIDTH])?;
    let guidance = Guidance::new(&prompt, &nothing, 7.5)?;
    let start = noise(&device, 2, &[FRAMES, LATENT, LATENT, 4])?;
    let config = SampleConfig { steps: 4, stop_after: None, motion: Motion::Auto };
    let observe = &mut |s: customttt::diffusion::SampleStep| {
        if go_on(s.done, s.steps) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let latents = sample(&unet, &Schedule::default(), &start, &guidance, config, &Changes::none(), observe)?;
    let pictures = vae.decode(&latents)?; // (F, h, w, 4) -> (F, 8h, 8w, 3)
    let side = LATENT * vae.downscale();
    let frames: Vec<Frame> =
        (0..FRAMES).map(|f| Frame::from_values(side, side, &pictures.narrow(f, 1)?.to_vec())).collect::<Result<_>>()?;
    write_gif(path, &frames, 8.0)
}

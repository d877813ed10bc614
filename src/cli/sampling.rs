//! Sampling a video and writing it: latents first, so that nothing after them can cost the sampling.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::config::Config;
use super::draws::LatentSize;
use super::engine::{Engine, Pictures};
use super::job::Job;
use super::layout;
use super::progress::{Reporter, Tick};
use super::run_folder::{prepare_output, write_text};
use super::signals::Stop;
use crate::data::{NamedTensors, TensorWriter};
use crate::diffusion::{Guidance, SampleConfig, SampleStep, sample_from};
use crate::media;
use crate::model::unet::Motion;
use crate::nn::Changes;
use crate::train::streams;
use crate::{Error, Philox, Result, Tensor};

/// A video to make.
pub struct Video<'v> {
    /// For progress.
    pub name: String,
    pub prompt: String,
    /// Encoded prompts (1, L, D).
    pub context: &'v Tensor,
    pub uncond: &'v Tensor,
    /// LoRA in force.
    pub changes: &'v Changes,
}

/// The initial noise (F, h, w, 4) of a seed: the same for every video of a run, so that they can be compared.
///
/// # Errors
/// None in practice.
pub fn noise(engine: &Engine, seed: u64, size: LatentSize) -> Result<Tensor> {
    let shape = [size.frames, size.height, size.width, 4];
    let numbers = Philox::new(seed, streams::SAMPLE).normal_vec(0, shape.iter().product());
    Tensor::from_slice(&engine.device, shape, &numbers)
}

/// Samples the latents of a video from `noise`. With a file for it, what a signal breaks off is kept there, and gone on
/// from.
///
/// # Errors
/// Those of sampling; [`Error::Cancelled`] after a signal.
pub fn latents(job: &mut Job, engine: &Engine, video: &Video, noise: &Tensor, state: Option<&Path>) -> Result<Tensor> {
    let (config, stop, reporter) = (job.config, job.stop.as_ref(), &mut job.reporter);
    let steps = config.count("sample.steps");
    let guidance = Guidance::new(video.context, video.uncond, config.real("sample.cfg") as f32)?;
    let run = SampleConfig { steps, stop_after: None, motion: Motion::Auto };
    let (done, begin) = match state {
        Some(path) if path.exists() => read_partial(engine, path)?,
        _ => (0, noise.clone()),
    };
    reporter.stage_start(&video.name, steps, done);
    let mut failure = None;
    let sampled = engine.device.run(|| {
        let observe = &mut |step: SampleStep| {
            reporter.step(&Tick { done: step.done, ..Tick::default() });
            if step.done == step.steps {
                return ControlFlow::Continue(());
            }
            let stopped = stop.is_some_and(Stop::requested);
            if stopped && let Some(path) = state {
                failure = write_partial(&step, path).err();
            }
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        sample_from(&engine.unet, &engine.schedule, &begin, done, &guidance, run, video.changes, observe)
    });
    reporter.stage_end();
    failure.map_or(sampled, Err)
}

fn write_partial(step: &SampleStep, path: &Path) -> Result<()> {
    prepare_output(path)?;
    let mut out = TensorWriter::new();
    out.floats("latents", step.latents.shape(), step.latents.to_vec());
    out.integers("step", [1], vec![step.done as i32]);
    out.write(path)
}

/// Steps done, and what they made of the noise.
fn read_partial(engine: &Engine, path: &Path) -> Result<(usize, Tensor)> {
    let file = NamedTensors::open(path)?;
    match (file.floats("latents")?, file.integers("step")?) {
        (Some((shape, numbers)), Some((_, step))) if shape.len() == 4 && step.len() == 1 && step[0] >= 0 => {
            Ok((step[0] as usize, Tensor::from_slice(&engine.device, shape, &numbers)?))
        }
        _ => Err(Error::input(path, "is no saved state of sampling")),
    }
}

/// Writes latents (F, h, w, 4) as the tensor `latents` (1, 4, F, h, w).
///
/// # Errors
/// [`Error::Io`].
pub fn write_latents(latents: &Tensor, path: &Path) -> Result<()> {
    prepare_output(path)?;
    let [f, h, w, c] = latents.shape()[..] else {
        return Err(Error::shape("latents", format!("{} are not (F, h, w, 4)", latents.shape())));
    };
    let dims = [1, c, f, h, w];
    let mut out = TensorWriter::new();
    out.floats("latents", dims, layout::videos_out(&latents.to_vec(), dims));
    out.write(path)
}

/// Reads what [`write_latents`] wrote.
///
/// # Errors
/// [`Error::Input`] for another file.
pub fn read_latents(engine: &Engine, path: &Path) -> Result<Tensor> {
    let file = NamedTensors::open(path)?;
    match file.floats("latents")? {
        Some((shape, numbers)) if shape.len() == 5 && shape[0] == 1 => {
            let [_, c, f, h, w] = shape[..] else { unreachable!("the shape should have five dimensions") };
            Tensor::from_slice(&engine.device, [f, h, w, c], &layout::videos_in(&numbers, [1, c, f, h, w]))
        }
        _ => Err(Error::input(path, "has no latents (1, 4, F, h, w)")),
    }
}

/// The files of a video.
pub struct Written {
    pub mp4: PathBuf,
    pub gif: PathBuf,
    pub sheet: PathBuf,
}

/// The file that is written last, so that its being there means that all are.
pub fn params_path(folder: &Path) -> PathBuf {
    folder.join("params.json")
}

/// The paths of a video's files in its folder.
pub fn files(folder: &Path) -> Written {
    Written { mp4: folder.join("video.mp4"), gif: folder.join("video.gif"), sheet: folder.join("sheet.png") }
}

/// Decodes latents and writes the video in every form, then `params.json`.
///
/// # Errors
/// Those of the VAE; [`Error::Io`].
pub fn decode_and_write(
    pictures: &Pictures,
    latents: &Tensor,
    folder: &Path,
    fps: f64,
    params: &Json,
    reporter: &mut Reporter,
) -> Result<Written> {
    reporter.stage_start("decode", latents.shape()[0], 0);
    let tick = |done| reporter.step(&Tick { done, ..Tick::default() });
    let frames = pictures.decode(latents, tick);
    reporter.stage_end();
    let (frames, written) = (frames?, files(folder));
    media::write_png_frames(folder, &frames)?;
    media::write_gif(&written.gif, &frames, fps)?;
    media::write_png(&written.sheet, &media::contact_sheet(&frames)?)?;
    media::write_mp4(&written.mp4, &frames, fps)?;
    let text = serde_json::to_string_pretty(params).expect("strings and numbers should serialise");
    write_text(&params_path(folder), &(text + "\n"))?;
    reporter.event("sample", json!({ "path": written.mp4, "frames": frames.len() }));
    Ok(written)
}

/// What `params.json` says of a video.
pub fn params(config: &Config, video: &Video, size: LatentSize) -> Json {
    json!({
        "prompt": video.prompt,
        "negative": config.text("sample.negative").unwrap_or_default(),
        "seed": config.seed(),
        "steps": config.count("sample.steps"),
        "cfg": config.real("sample.cfg"),
        "frames": size.frames,
        "width": 8 * size.width,
        "height": 8 * size.height,
        "fps": config.real("sample.fps"),
        "spatial_scale": config.real("sample.spatial_scale"),
        "temporal_scale": config.real("sample.temporal_scale"),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

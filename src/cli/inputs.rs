//! What a job works from: the user's pictures, clip and prompts, checked before anything slow begins.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::engine::Pictures;
use super::progress::{Reporter, Tick};
use super::prompts;
use super::run_folder::RunFolder;
use crate::media::{self, ClipOptions, Ffmpeg, Fit, Frame};
use crate::model::lora::Kind;
use crate::train::streams;
use crate::{Error, Philox, Result, Tensor};

/// Prompts as text, some given and the rest derived.
#[derive(Clone, Debug)]
pub struct Prompts<'c> {
    config: &'c Config,
}

impl<'c> Prompts<'c> {
    /// The prompts of a configuration.
    pub fn new(config: &'c Config) -> Self {
        Prompts { config }
    }

    fn subject(&self, why: &str) -> Result<&'c str> {
        self.config.required("data.subject.name", why)
    }

    /// The motion without who moves.
    ///
    /// # Errors
    /// [`Error::Config`] asking for `--motion-phrase` if it cannot be told.
    fn phrase(&self, why: &str) -> Result<String> {
        if let Some(phrase) = self.config.text("data.motion.phrase") {
            return Ok(phrase.into());
        }
        let prompt = self.config.required("data.motion.prompt", why)?;
        prompts::motion_phrase(prompt).ok_or_else(|| {
            let detail =
                format!("missing: it cannot be told from the motion prompt {prompt:?} where the motion begins");
            Error::config(self.config.name("data.motion.phrase"), detail + "; give it, such as \"is playing guitar\"")
        })
    }

    /// Of the spatial stage.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag that is missing; so for all of these.
    pub fn spatial(&self) -> Result<String> {
        match self.config.text("data.subject.prompt") {
            Some(prompt) => Ok(prompt.into()),
            None => Ok(prompts::spatial(self.subject("the spatial stage's prompt is made of it")?)),
        }
    }

    /// Of the temporal stage.
    pub fn temporal(&self) -> Result<String> {
        Ok(self.config.required("data.motion.prompt", "it is the temporal stage's prompt")?.into())
    }

    /// Of the student, for one video's prompt or for all.
    pub fn student(&self, scene: Option<&str>) -> Result<Vec<String>> {
        if let Some(prompt) = self.config.text("ttt.student_prompt") {
            return Ok(vec![prompt.into()]);
        }
        match scene {
            Some(prompt) => Ok(vec![prompt.into()]),
            None if self.config.on("ttt.scene") => self.sample(),
            None => self.plain_student().map(|p| vec![p]),
        }
    }

    fn plain_student(&self) -> Result<String> {
        let why = "the student's prompt is made of it";
        Ok(prompts::student(self.subject(why)?, &self.phrase(why)?))
    }

    /// Of the appearance reference.
    pub fn appearance(&self) -> Result<Vec<String>> {
        match self.config.path("ttt.appearance_prompts") {
            Some(file) => lines(&file),
            None => {
                let subject = self.subject("the appearance reference's prompts are made of it")?;
                Ok(prompts::appearance(subject, self.config.texts("ttt.doing")))
            }
        }
    }

    /// Of the motion reference.
    pub fn motion(&self) -> Result<Vec<String>> {
        match self.config.path("ttt.motion_prompts") {
            Some(file) => lines(&file),
            None => {
                let phrase = self.phrase("the motion reference's prompts are made of it")?;
                Ok(prompts::motion(self.config.texts("ttt.object"), &phrase))
            }
        }
    }

    /// Of the videos.
    pub fn sample(&self) -> Result<Vec<String>> {
        match self.config.texts("sample.prompts") {
            [] => {
                let derived = self.plain_student();
                derived.map(|p| vec![p]).map_err(|_| {
                    Error::config(self.config.name("sample.prompts"), "missing: what the video should show")
                })
            }
            given => Ok(given.to_vec()),
        }
    }

    /// The prompt to stay away from.
    pub fn negative(&self) -> String {
        self.config.text("sample.negative").unwrap_or_default().into()
    }
}

/// The lines of a file of prompts.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read(path).map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
    let text = String::from_utf8(text).map_err(|_| Error::input(path, "is not UTF-8 text"))?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if lines.is_empty() { Err(Error::input(path, "has no prompts")) } else { Ok(lines) }
}

/// An input that must be there.
///
/// # Errors
/// [`Error::Config`] if it is not given, [`Error::Input`] if it does not exist.
pub fn existing(config: &Config, key: &str, why: &str) -> Result<PathBuf> {
    let path = config.required_path(key, why)?;
    if path.exists() {
        return Ok(path);
    }
    Err(Error::input(path, format!("does not exist ({})", config.name(key))))
}

/// Width and height of the video.
///
/// # Errors
/// [`Error::Config`] unless both are multiples of 8.
pub fn size(config: &Config) -> Result<(usize, usize)> {
    for key in ["data.width", "data.height"] {
        let side = config.count(key);
        if !side.is_multiple_of(8) {
            let near = (side / 8 * 8).max(8);
            return Err(config.error(key, format!("{side} is not a multiple of 8; {near} and {} are", near + 8)));
        }
    }
    Ok((config.count("data.width"), config.count("data.height")))
}

fn fit(config: &Config) -> Fit {
    if config.is("data.fit", "letterbox") { Fit::Letterbox } else { Fit::Crop }
}

/// The subject's pictures at the video's size.
///
/// # Errors
/// [`Error::Input`] for no pictures, or one that cannot be read.
pub fn pictures(config: &Config) -> Result<Vec<Frame>> {
    let (width, height) = size(config)?;
    let folder = existing(config, "data.subject.path", "the spatial stage learns from it")?;
    if !folder.is_dir() {
        return Err(Error::input(folder, "is not a folder; the subject is a folder of pictures"));
    }
    media::load_pictures(folder, width, height, fit(config))
}

/// The clip's frames at the video's size.
///
/// # Errors
/// [`Error::Input`] for a clip that is too short or cannot be read.
pub fn clip(config: &Config, reporter: &mut Reporter) -> Result<Vec<Frame>> {
    let (width, height) = size(config)?;
    let path = existing(config, "data.motion.path", "the temporal stage learns from it")?;
    let ffmpeg = match config.text("data.ffmpeg") {
        None => Ffmpeg::OnPath,
        Some("never") => Ffmpeg::Never,
        Some(path) => Ffmpeg::At(path.into()),
    };
    let options = ClipOptions {
        frames: config.count("data.frames"),
        start: config.count("data.motion.start"),
        step: config.count("data.motion.step"),
        fps: config.real_opt("data.motion.fps"),
        width,
        height,
        fit: fit(config),
        ffmpeg,
    };
    let clip = media::read_clip(&path, &options)?;
    reporter.detail(format!("clip: {} read by {}, {:.4} fps", clip.codec, clip.backend, clip.fps));
    Ok(clip.frames)
}

/// Writes the frames a stage learns from to the run folder, as they are fed to the VAE.
///
/// # Errors
/// [`Error::Io`].
pub fn keep(folder: Option<&RunFolder>, name: &str, frames: &[Frame]) -> Result<()> {
    match folder {
        Some(folder) => media::write_png_frames(folder.data(name), frames),
        None => Ok(()),
    }
}

/// Which frames are encoded, for the stream of their noise and for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Subject,
    Motion,
}

impl Source {
    /// What a LoRA of this kind learns from.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Spatial => Source::Subject,
            Kind::Temporal => Source::Motion,
        }
    }
}

/// Encodes frames with progress.
///
/// # Errors
/// Those of the VAE.
pub fn encode(
    pictures: &Pictures,
    frames: &[Frame],
    source: Source,
    seed: u64,
    reporter: &mut Reporter,
) -> Result<Tensor> {
    let (name, stream) = match source {
        Source::Subject => ("encode subject", streams::PICTURE_LATENTS),
        Source::Motion => ("encode motion", streams::CLIP_LATENTS),
    };
    reporter.stage_start(name, frames.len(), 0);
    let tick = |done| reporter.step(&Tick { done, ..Tick::default() });
    let latents = pictures.encode(frames, Philox::new(seed, stream), tick);
    reporter.stage_end();
    latents
}

//! AnimateDiff's motion modules: a MotionAdapter folder, or one file in the original spelling or diffusers'.

use std::path::Path;

use super::family::Family;
use super::folder::{open_component, read_json};
use super::safetensors::{Entry, TensorFile};
use super::{Checkpoint, names};
use crate::model::config::{MotionConfig, MotionNorm};
use crate::{Error, Result};

/// Motion modules: the second source of parameters of a UNet.
#[derive(Debug)]
pub struct Motion {
    pub config: MotionConfig,
    pub weights: Checkpoint,
    /// Something about the file that is worth a line.
    pub note: Option<String>,
}

impl Motion {
    /// Opens a folder or a file.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, malformed, or something else, which is named.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let beside = path.with_file_name("config.json");
        let class = read_json::<MotionConfig>(&beside).ok().and_then(|config| config.other.get("_class_name").cloned());
        let config = (class == Some("MotionAdapter".into())).then_some(beside);
        let weights = Checkpoint::open(path)?;
        check_kind(&weights)?;
        let (config, note) = match config {
            Some(config) => (read_json(&config)?, None),
            None => guess_config(&weights)?,
        };
        config.validate(path)?;
        Self::finish(config, weights, note)
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let component =
            open_component(dir, "diffusion_pytorch_model", None, MotionConfig::validate, |name| Some(name.into()))?;
        check_kind(&component.weights)?;
        Self::finish(component.config, component.weights, component.note)
    }

    fn finish(config: MotionConfig, weights: Checkpoint, note: Option<String>) -> Result<Self> {
        for file in weights.files() {
            for entry in file.header().entries().iter().filter(|e| names::is_position_table(&e.name)) {
                check_positions(file, entry, config.motion_max_seq_length)?;
            }
        }
        Ok(Motion { config, weights: weights.renamed(names::motion)?, note })
    }
}

fn check_kind(weights: &Checkpoint) -> Result<()> {
    match weights.family() {
        Family::MotionModule => Ok(()),
        other => Err(Error::model(weights.path(), format!("is not an AnimateDiff motion module but {other}"))),
    }
}

/// The configuration of a bare file: widths and layers from its names and shapes, the rest from the family's
/// constants; a line if the length of the position table is a guess.
fn guess_config(weights: &Checkpoint) -> Result<(MotionConfig, Option<String>)> {
    let stored = || weights.entries();
    let width = |i: usize| {
        let at = format!("down_blocks.{i}.motion_modules.0.");
        let entry = stored().find(|(name, _)| name.contains(&at) && name.ends_with(".proj_in.bias"));
        entry.and_then(|(_, entry)| entry.shape.first().copied())
    };
    let layers = |j: &usize| stored().any(|(name, _)| name.contains(&format!("down_blocks.0.motion_modules.{j}.")));
    let length = stored().find(|(name, _)| names::is_position_table(name)).and_then(|(_, e)| e.shape.get(1).copied());
    let config = MotionConfig {
        block_out_channels: (0..).map_while(width).collect(),
        motion_layers_per_block: (0..64).take_while(layers).count(),
        motion_max_seq_length: length.unwrap_or(32),
        use_motion_mid_block: stored().any(|(name, _)| name.contains("mid_block.motion_modules.")),
        motion_norm: MotionNorm::Frame,
        ..MotionConfig::default()
    };
    if config.block_out_channels.is_empty() {
        return Err(Error::model(weights.path(), "is not a complete motion module: down_blocks.0 is missing"));
    }
    let note = format!("{}: no position table inside; 32 frames at most, as in v3", weights.path().display());
    Ok((config, length.is_none().then_some(note)))
}

/// Makes sure that a stored table of frame positions is the formula.
fn check_positions(file: &TensorFile, entry: &Entry, max_frames: usize) -> Result<()> {
    let refuse = |detail: String| Err(Error::model(file.path(), format!("{} {detail}", entry.name)));
    let [1, frames, width] = entry.shape[..] else {
        return refuse(format!("has the shape {:?}, not (1, frames, channels)", entry.shape));
    };
    if frames != max_frames {
        return refuse(format!("is a table of {frames} frames; the configuration says {max_frames}"));
    }
    let table = file.numbers(entry)?;
    // Enough for tables that went through bf16.
    let close = |stored: f32, exact: f64| (f64::from(stored) - exact).abs() <= 5e-3;
    let exact = (0..frames).flat_map(|frame| positions(frame, width));
    match table.to_f32().iter().zip(exact).position(|(&stored, exact)| !close(stored, exact)) {
        Some(i) => refuse(format!("is not the sinusoid table at frame {}, channel {}", i / width, i % width)),
        None => Ok(()),
    }
}

/// The sinusoid of a frame's position: sines at even, cosines at odd channels.
pub(super) fn positions(frame: usize, width: usize) -> impl Iterator<Item = f64> {
    (0..width).map(move |channel| {
        let angle = frame as f64 * (-(10_000_f64.ln()) * (channel / 2 * 2) as f64 / width as f64).exp();
        if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    })
}

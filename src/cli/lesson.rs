//! What the spatial and the temporal stage begin with: their inputs, encoded, and a fresh or given LoRA.

use super::config::Config;
use super::draws::Draws;
use super::engine::{Engine, Pictures, Texts};
use super::inputs::{self, Prompts, Source};
use super::job::Job;
use super::loras;
use crate::media::Frame;
use crate::model::lora::{Kind, Lora, Part, Targets};
use crate::train::streams;
use crate::{Error, Philox, Result, Tensor};

/// What a stage learns from: a file of draws, a prompt, and frames that are yet to be encoded.
pub struct Lesson {
    kind: Kind,
    pub draws: Option<Draws>,
    /// (1, L, D)
    pub context: Tensor,
    latents: Option<Tensor>,
    frames: Vec<Frame>,
}

impl Lesson {
    /// Reads everything but the VAE's part.
    ///
    /// # Errors
    /// [`Error::Input`] for unusable inputs; those of the text encoder.
    pub fn gather(job: &mut Job, kind: Kind, texts: &mut Texts) -> Result<Self> {
        let (table, name) = (table(kind), if kind == Kind::Spatial { "subject" } else { "motion" });
        let draws = job.draws(&format!("{table}.draws"))?;
        let (mut context, mut latents) = (None, None);
        if let Some(draws) = &draws {
            context = draws.context("context")?;
            latents = match kind {
                Kind::Spatial => draws.pictures("latents")?,
                Kind::Temporal => draws.videos("latents")?.map(|(_, x)| x),
            };
        }
        let mut frames = Vec::new();
        if latents.is_none() {
            frames = match kind {
                Kind::Spatial => inputs::pictures(job.config)?,
                Kind::Temporal => inputs::clip(job.config, &mut job.reporter)?,
            };
            inputs::keep(job.folder.as_ref(), name, &frames)?;
        }
        let prompts = Prompts::new(job.config);
        let context = match (context, kind) {
            (Some(context), _) => context,
            (None, Kind::Spatial) => texts.encode(&[prompts.spatial()?], &mut job.reporter)?,
            (None, Kind::Temporal) => texts.encode(&[prompts.temporal()?], &mut job.reporter)?,
        };
        Ok(Lesson { kind, draws, context, latents, frames })
    }

    /// Encodes the frames; loads the VAE into `pictures` if it is not there yet.
    ///
    /// # Errors
    /// Those of the VAE.
    pub fn encode(mut self, job: &mut Job, pictures: &mut Option<Pictures>) -> Result<(Tensor, Self)> {
        if let Some(latents) = self.latents.take() {
            return Ok((latents, self));
        }
        if pictures.is_none() {
            *pictures = Some(Pictures::load(job.config, &job.device)?);
        }
        let (vae, seed) = (pictures.as_ref().expect("the VAE should just have been loaded"), job.config.seed());
        let (device, reporter, frames) = (job.device.clone(), &mut job.reporter, std::mem::take(&mut self.frames));
        let latents = device.run(|| inputs::encode(vae, &frames, Source::of(self.kind), seed, reporter))?;
        Ok((latents, self))
    }
}

/// The table of a kind's settings.
pub fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Spatial => "spatial",
        Kind::Temporal => "temporal",
    }
}

/// The LoRA a stage begins with.
///
/// # Errors
/// [`Error::Model`] for a file that does not fit, [`Error::Config`] for blocks that do not exist.
pub fn initial(job: &mut Job, engine: &Engine, kind: Kind, draws: Option<&Draws>) -> Result<Lora> {
    let (config, table) = (job.config, table(kind));
    let key = |name: &str| format!("{table}.{name}");
    let given = match (config.path(&key("init_lora")), draws) {
        (Some(path), _) => Some((loras::read(&path, &engine.unet)?, path)),
        (None, Some(draws)) => {
            loras::from_draws(draws.file(), &engine.unet)?.map(|lora| (lora, draws.file().path().to_path_buf()))
        }
        (None, None) => None,
    };
    let lora = match given {
        Some((lora, path)) if lora.of_kind(kind).pairs.len() != lora.pairs.len() => {
            return Err(Error::model(path, format!("is not a {table} LoRA, or not only that")));
        }
        Some((lora, _)) => lora,
        None => fresh(config, engine, kind)?,
    };
    job.reporter.say(format!("{table} LoRA: {} parameters in {} layers", grouped(lora.count()), lora.pairs.len()));
    Ok(lora)
}

/// A LoRA that changes nothing yet, by the settings of its stage.
///
/// # Errors
/// [`Error::Config`] for blocks that do not exist.
pub fn fresh(config: &Config, engine: &Engine, kind: Kind) -> Result<Lora> {
    let key = |name: &str| format!("{}.{name}", table(kind));
    let parts = match config.text(&key("layers")) {
        Some("attention") => vec![Part::Attn1, Part::Attn2],
        Some("ff") => vec![Part::FeedForward],
        Some("with-projections") => vec![Part::Attn1, Part::Attn2, Part::FeedForward, Part::Projection],
        _ => vec![Part::Attn1, Part::Attn2, Part::FeedForward],
    };
    let targets = Targets { kind, blocks: config.blocks(&key("blocks")), parts };
    let layers = targets.layers(&engine.unet).map_err(|e| renamed(e, config, &key("blocks")))?;
    let stream = if kind == Kind::Spatial { streams::SPATIAL_INIT } else { streams::TEMPORAL_INIT };
    Lora::init(&engine.device, &layers, config.count(&key("rank")), Philox::new(config.seed(), stream))
}

/// The library's error about a setting under the name that the user knows.
fn renamed(error: Error, config: &Config, key: &str) -> Error {
    match error {
        Error::Config { detail, .. } => config.error(key, detail),
        other => other,
    }
}

/// 12124160 -> 12,124,160.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!(super::grouped(12_124_160), "12,124,160");
        assert_eq!(super::grouped(999), "999");
        assert_eq!(super::grouped(0), "0");
    }
}

//! The commands as sequences of stages.

use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::draws::LatentSize;
use super::engine::{Engine, Motions, Pictures, Texts};
use super::inputs::Prompts;
use super::job::Job;
use super::lesson::Lesson;
use super::sampling::{self, Video};
use super::stages::{self, TttPrompts};
use super::{loras, run_folder};
use crate::model::lora::{Kind, Lora};
use crate::nn::Changes;
use crate::{Error, Result, Tensor};

impl Job<'_> {
    /// `train spatial` and `train temporal`.
    pub fn one_lora(&mut self, kind: Kind) -> Result<()> {
        let mut texts = Texts::new(self.config, &self.device);
        let lesson = Lesson::gather(self, kind, &mut texts)?;
        drop(texts);
        let (latents, lesson) = lesson.encode(self, &mut None)?;
        let motions = if kind == Kind::Spatial { Motions::Unused } else { Motions::Required };
        let engine = Engine::load(self.config, &self.device, motions, &mut self.reporter)?;
        stages::train(self, &engine, kind, &latents, lesson)
    }

    /// `ttt`.
    pub fn only_ttt(&mut self) -> Result<()> {
        let draws = self.draws("ttt.draws")?;
        let mut texts = Texts::new(self.config, &self.device);
        let prompts = TttPrompts::gather(self, &mut texts, draws.as_ref(), None)?;
        drop(texts);
        let engine = Engine::load(self.config, &self.device, Motions::Required, &mut self.reporter)?;
        stages::ttt(self, &engine, &prompts, draws.as_ref(), "")
    }

    /// `sample`.
    pub fn only_sample(&mut self) -> Result<()> {
        let draws = self.draws("sample.draws")?;
        let given = |name: &str| draws.as_ref().map_or(Ok(None), |d| d.context(name));
        let (context, uncond, noise) = (
            given("context")?,
            given("context_uncond")?,
            match &draws {
                Some(draws) => draws.videos("latents")?,
                None => None,
            },
        );
        let mut texts = Texts::new(self.config, &self.device);
        let prompts = match &context {
            Some(_) => vec![self.config.texts("sample.prompts").first().cloned().unwrap_or_default()],
            None => Prompts::new(self.config).sample()?,
        };
        let contexts = match context {
            Some(context) => context,
            None => texts.encode(&prompts, &mut self.reporter)?,
        };
        let uncond = match uncond {
            Some(uncond) => uncond,
            None => texts.encode(&[Prompts::new(self.config).negative()], &mut self.reporter)?,
        };
        drop(texts);
        let size = match &noise {
            Some((1, x)) => LatentSize { frames: x.shape()[0], height: x.shape()[1], width: x.shape()[2] },
            Some((n, _)) => {
                let path = self.config.path("sample.draws").unwrap_or_default();
                return Err(Error::input(path, format!("latents are {n} videos; one is needed")));
            }
            None => self.latent_size()?,
        };
        if let Some(draws) = &draws {
            draws.warn_of_unused(&mut self.reporter);
        }
        let motions = if size.frames > 1 { Motions::Required } else { Motions::Optional };
        let engine = Engine::load(self.config, &self.device, motions, &mut self.reporter)?;
        engine.check_frames(self.config, size.frames)?;
        let mut changes = engine.base.clone();
        for (path, scale) in self.config.scaled_paths("sample.lora") {
            let lora = loras::read(&path, &engine.unet)?;
            self.merge(&engine, &lora, scale, &mut changes)?;
        }
        let noise = match noise {
            Some((_, noise)) => noise,
            None => sampling::noise(&engine, self.config.seed(), size)?,
        };
        for (i, prompt) in prompts.iter().enumerate() {
            let context = contexts.narrow(i, 1)?;
            let name = video_name("sample", i, &prompts);
            let video = Video {
                name: name.clone(),
                prompt: prompt.clone(),
                context: &context,
                uncond: &uncond,
                changes: &changes,
            };
            self.sample(&engine, &video, &noise, &name)?;
        }
        Ok(())
    }

    /// `run`: all stages, and a video before and after the last.
    pub fn whole(&mut self) -> Result<()> {
        let config = self.config;
        let prompts = Prompts::new(config).sample()?;
        let scopes = scopes(config, &prompts);
        let lacks = |job: &Self, name: &str| job.lora_path(name).is_some_and(|p| !p.exists());
        let mut texts = Texts::new(config, &self.device);
        let mut lessons = Vec::new();
        for (kind, name) in [(Kind::Spatial, "spatial"), (Kind::Temporal, "temporal")] {
            if lacks(self, name) {
                lessons.push((kind, Lesson::gather(self, kind, &mut texts)?));
            }
        }
        let draws = self.draws("ttt.draws")?;
        let mut adaptations = Vec::new();
        for scope in &scopes {
            adaptations.push(TttPrompts::gather(self, &mut texts, draws.as_ref(), scope.scene.as_deref())?);
        }
        let contexts = texts.encode(&prompts, &mut self.reporter)?;
        let uncond = texts.encode(&[Prompts::new(config).negative()], &mut self.reporter)?;
        drop(texts);

        let mut pictures = None;
        let mut encoded = Vec::new();
        for (kind, lesson) in lessons {
            let (latents, lesson) = lesson.encode(self, &mut pictures)?;
            encoded.push((kind, latents, lesson));
        }
        drop(pictures);

        let engine = Engine::load(config, &self.device, Motions::Required, &mut self.reporter)?;
        let size = self.latent_size()?;
        engine.check_frames(config, size.frames)?;
        for (kind, latents, lesson) in encoded {
            stages::train(self, &engine, kind, &latents, lesson)?;
        }
        let noise = sampling::noise(&engine, config.seed(), size)?;
        if config.on("sample.before_ttt") {
            self.sample_all(
                &engine,
                ["spatial", "temporal"],
                "before_ttt",
                (&prompts, &contexts, &uncond),
                &noise,
                None,
            )?;
        }
        for (scope, adaptation) in scopes.iter().zip(&adaptations) {
            let names = ["ttt_spatial", "ttt_temporal"].map(|name| format!("{name}{}", scope.suffix));
            if names.iter().any(|name| lacks(self, name)) {
                stages::ttt(self, &engine, adaptation, draws.as_ref(), &scope.suffix)?;
            }
            let names = [&names[0][..], &names[1][..]];
            self.sample_all(&engine, names, "after_ttt", (&prompts, &contexts, &uncond), &noise, scope.only)?;
        }
        let all = ["spatial", "temporal", "ttt_spatial", "ttt_temporal"];
        let files: Map<String, Json> =
            all.iter().filter_map(|n| Some((n.to_string(), json!(self.lora_path(n)?)))).collect();
        self.results.insert("loras".into(), files.into());
        Ok(())
    }

    /// Samples the videos of all prompts, or of one, with two LoRAs of the run folder.
    fn sample_all(
        &mut self,
        engine: &Engine,
        names: [&str; 2],
        group: &str,
        (prompts, contexts, uncond): (&[String], &Tensor, &Tensor),
        noise: &Tensor,
        only: Option<usize>,
    ) -> Result<()> {
        let mut changes = engine.base.clone();
        for name in names {
            let path = self.lora_path(name).expect("a whole run should have a run folder");
            let lora = loras::read(&path, &engine.unet)?;
            self.merge(engine, &lora, 1.0, &mut changes)?;
        }
        for (i, prompt) in prompts.iter().enumerate().filter(|(i, _)| only.is_none_or(|o| o == *i)) {
            let context = contexts.narrow(i, 1)?;
            let video =
                Video { name: group.into(), prompt: prompt.clone(), context: &context, uncond, changes: &changes };
            self.sample(engine, &video, noise, &video_name(group, i, prompts))?;
        }
        Ok(())
    }

    /// Merges a LoRA, its spatial and temporal pairs each at their scale.
    fn merge(&self, engine: &Engine, lora: &Lora, scale: f32, changes: &mut Changes) -> Result<()> {
        for (kind, key) in [(Kind::Spatial, "sample.spatial_scale"), (Kind::Temporal, "sample.temporal_scale")] {
            lora.of_kind(kind).merge(&engine.unet, changes, scale * self.config.real(key) as f32)?;
        }
        Ok(())
    }

    /// Samples one video and, in a run folder, decodes and writes it.
    fn sample(&mut self, engine: &Engine, video: &Video, noise: &Tensor, name: &str) -> Result<()> {
        let folder = self.folder.as_ref().map(|f| f.sample(name));
        let kept = folder.as_ref().map(|f| f.join("latents.safetensors"));
        let state = self.folder.as_ref().map(|f| f.checkpoint(&name.replace('/', "_")));
        let latents = match &kept {
            Some(path) if path.exists() => sampling::read_latents(engine, path)?,
            _ => sampling::latents(self, engine, video, noise, state.as_deref())?,
        };
        if let Some(path) = self.config.path("sample.save_latents") {
            sampling::write_latents(&latents, &path)?;
            self.results.insert("latents".into(), json!(path));
            self.paths.push(path);
        }
        let (Some(folder), Some(kept)) = (folder, kept) else { return Ok(()) };
        if !kept.exists() {
            sampling::write_latents(&latents, &kept)?;
            if let Some(state) = state.filter(|path| path.exists()) {
                std::fs::remove_file(&state).map_err(Error::io(&state, "remove"))?;
            }
        }
        let written = if sampling::params_path(&folder).exists() {
            sampling::files(&folder)
        } else {
            let size = LatentSize { frames: latents.shape()[0], height: latents.shape()[1], width: latents.shape()[2] };
            let params = sampling::params(self.config, video, size);
            let pictures = Pictures::load(self.config, &self.device)?;
            let fps = self.config.real("sample.fps");
            let (device, reporter) = (self.device.clone(), &mut self.reporter);
            device.run(|| sampling::decode_and_write(&pictures, &latents, &folder, fps, &params, reporter))?
        };
        let videos = self.results.entry("videos").or_insert_with(|| json!({}));
        videos[name] =
            json!({ "prompt": video.prompt, "mp4": written.mp4, "gif": written.gif, "sheet": written.sheet });
        self.paths.push(written.mp4);
        Ok(())
    }
}

/// What one adaptation is for.
struct Scope {
    /// Of its LoRA files' names.
    suffix: String,
    /// The video's prompt, if the student is to learn with it.
    scene: Option<String>,
    /// The one prompt it is for, if it is not for all.
    only: Option<usize>,
}

fn scopes(config: &Config, prompts: &[String]) -> Vec<Scope> {
    if config.is("ttt.scope", "pair") {
        return vec![Scope { suffix: String::new(), scene: None, only: None }];
    }
    let scope = |(i, prompt): (usize, &String)| Scope {
        suffix: if prompts.len() > 1 { format!("_{}", i + 1) } else { String::new() },
        scene: Some(prompt.clone()),
        only: Some(i),
    };
    prompts.iter().enumerate().map(scope).collect()
}

/// The folder of a video below `samples`: one prompt needs no name of its own.
fn video_name(group: &str, i: usize, prompts: &[String]) -> String {
    if prompts.len() == 1 { group.into() } else { format!("{group}/{:02}_{}", i + 1, run_folder::slug(&prompts[i])) }
}

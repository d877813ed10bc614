//! The three training stages with what the settings give them.

use std::path::PathBuf;

use serde_json::json;

use super::draws::{Draws, LatentSize};
use super::engine::{Engine, Texts};
use super::inputs::Prompts;
use super::job::Job;
use super::lesson::{Lesson, fresh, initial, table};
use super::loras;
use super::training::{Dump, Trained, Training};
use crate::model::lora::{Kind, Lora};
use crate::nn::Context;
use crate::ops::lion::Lion;
use crate::train::StageConfig;
use crate::train::joint::{self, JointConfig};
use crate::train::spatial::{self, SpatialData};
use crate::train::temporal::{self, TemporalData, TemporalLoss};
use crate::train::ttt::{self, Reference, TttConfig, TttData, TttDraws};
use crate::{Error, Result, Tensor};

/// Steps of the full run whose first steps a partial reference takes.
pub const REFERENCE_GRID: usize = 25;

/// Settings that all stages share.
fn stage_config(job: &Job, table: &str, steps: usize) -> StageConfig {
    let config = job.config;
    let key = |name: &str| format!("{table}.{name}");
    let (beta1, beta2) = config.betas(&key("betas"));
    let (lr, weight_decay) = (config.real(&key("lr")), config.real(&key("weight_decay")));
    StageConfig {
        steps,
        lion: Lion { lr, beta1, beta2, weight_decay },
        dropout: config.real(&key("dropout")) as f32,
        seed: config.seed(),
        recompute: config.on("model.recompute"),
    }
}

/// The frame around a stage.
fn training<'t>(
    job: &'t mut Job<'_>,
    engine: &'t Engine,
    table: &str,
    name: String,
    stage: &StageConfig,
    outputs: Vec<(Option<Kind>, PathBuf)>,
) -> Training<'t> {
    let config = job.config;
    let gradients_of = config.count_opt(&format!("{table}.dump_grads"));
    Training {
        checkpoint: job.folder.as_ref().map(|f| f.checkpoint(&name)),
        name,
        steps: stage.steps,
        lr: stage.lion.lr,
        device: &engine.device,
        save_every: config.count("output.save_every"),
        outputs,
        dump: config.path(&format!("{table}.dump")).map(|path| Dump { path, gradients_of }),
        stop: job.stop.clone(),
        reporter: &mut job.reporter,
    }
}

/// Steps of a stage: as asked for, or as many as the file of draws has.
fn steps(job: &Job, table: &str, draws: Option<&Draws>, names: &[&str]) -> Result<usize> {
    let key = format!("{table}.steps");
    let asked = job.config.count(&key);
    draws.map_or(Ok(asked), |draws| draws.limit_steps(names, asked, job.config.given(&key)))
}

/// Trains the spatial or the temporal LoRA on encoded frames.
///
/// # Errors
/// Those of the stage.
pub fn train(job: &mut Job, engine: &Engine, kind: Kind, latents: &Tensor, lesson: Lesson) -> Result<()> {
    let table = table(kind);
    let draws = lesson.draws.as_ref();
    let names: &[&str] = match kind {
        Kind::Spatial => &["image_index", "timestep", "noise"],
        Kind::Temporal => &["timestep", "anchor", "noise"],
    };
    let stage = stage_config(job, table, steps(job, table, draws, names)?);
    let context = Context::new(lesson.context.clone());
    let lora = initial(job, engine, kind, draws)?;
    let given = job.config.path(&format!("{table}.lora_out"));
    let outputs: Vec<_> = job.lora_path(table).into_iter().chain(given).map(|path| (None, path)).collect();
    let (unet, base, schedule) = (&engine.unet, &engine.base, &engine.schedule);
    let trained = match kind {
        Kind::Spatial => {
            let data = SpatialData { latents, context: &context };
            let numbers = draws.map_or(Ok(Default::default()), |d| d.spatial(latents))?;
            warn_of_unused(job, draws);
            let mut frame = training(job, engine, table, table.into(), &stage, outputs.clone());
            engine.device.run(|| {
                frame.run(lora, |state, observe| {
                    spatial::train(unet, base, schedule, data, &stage, &numbers, state, observe)
                })
            })?
        }
        Kind::Temporal => {
            engine.check_frames(job.config, latents.shape()[0])?;
            let data = TemporalData { latents, context: &context };
            let numbers = draws.map_or(Ok(Default::default()), |d| d.temporal(latents))?;
            let loss = loss(job.config.is("temporal.loss", "plain"));
            warn_of_unused(job, draws);
            if job.config.on("temporal.joint_spatial") {
                let spatial = fresh(job.config, engine, Kind::Spatial)?;
                let both = Lora { pairs: [lora.pairs, spatial.pairs].concat() };
                let spatial_lion = stage_config(job, "spatial", 1).lion;
                let kept = outputs.iter().map(|(_, path)| (Some(kind), path.clone())).collect();
                let mut frame = training(job, engine, table, table.into(), &stage, kept);
                let joint = JointConfig { stage, loss, spatial_lion };
                engine.device.run(|| {
                    frame.run(both, |state, observe| {
                        joint::train(unet, base, schedule, data, &joint, &numbers, state, observe)
                    })
                })?
            } else {
                let mut frame = training(job, engine, table, table.into(), &stage, outputs.clone());
                engine.device.run(|| {
                    frame.run(lora, |state, observe| {
                        temporal::train(unet, base, schedule, data, loss, &stage, &numbers, state, observe)
                    })
                })?
            }
        }
    };
    report(job, table, &trained, outputs);
    Ok(())
}

fn loss(plain: bool) -> TemporalLoss {
    if plain { TemporalLoss::Plain } else { TemporalLoss::Debiased }
}

fn warn_of_unused(job: &mut Job, draws: Option<&Draws>) {
    if let Some(draws) = draws {
        draws.warn_of_unused(&mut job.reporter);
    }
}

fn report(job: &mut Job, name: &str, trained: &Trained, outputs: Vec<(Option<Kind>, PathBuf)>) {
    let last = trained.losses.last().map(|parts| parts.iter().map(|&l| super::progress::number(l.into())).collect());
    let about = json!({
        "steps": trained.losses.len(),
        "last_loss": serde_json::Value::Array(last.unwrap_or_default()),
        "parameters": trained.lora.count(),
        "files": outputs.iter().map(|(_, path)| path).collect::<Vec<_>>(),
    });
    let stages = job.results.entry("stages").or_insert_with(|| json!({}));
    stages[name] = about;
    job.paths.extend(outputs.into_iter().map(|(_, path)| path));
}

/// The encoded prompts of test-time training, each (n, L, D).
pub struct TttPrompts {
    appearance: Tensor,
    motion: Tensor,
    student: Tensor,
    uncond: Tensor,
}

impl TttPrompts {
    /// Takes them from the file of draws, or encodes the given and derived ones. With `scene`, the student's prompt is
    /// that of a video.
    ///
    /// # Errors
    /// [`Error::Config`] for a prompt that is missing; those of the text encoder.
    pub fn gather(job: &mut Job, texts: &mut Texts, draws: Option<&Draws>, scene: Option<&str>) -> Result<Self> {
        let prompts = Prompts::new(job.config);
        let mut encode = |name: &str, derived: &dyn Fn() -> Result<Vec<String>>| {
            let given = draws.map_or(Ok(None), |d| d.contexts(name))?;
            given.map_or_else(|| texts.encode(&derived()?, &mut job.reporter), Ok)
        };
        Ok(TttPrompts {
            appearance: encode("context_appearance", &|| prompts.appearance())?,
            motion: encode("context_motion", &|| prompts.motion())?,
            student: encode("context_student", &|| prompts.student(scene))?,
            uncond: encode("context_uncond", &|| Ok(vec![prompts.negative()]))?,
        })
    }
}

/// Adapts both LoRAs to each other. `suffix` is that of the names of their files.
///
/// # Errors
/// Those of the stage.
pub fn ttt(job: &mut Job, engine: &Engine, prompts: &TttPrompts, draws: Option<&Draws>, suffix: &str) -> Result<()> {
    const VIDEOS: [&str; 4] = ["start_motion", "noise_motion", "start_appearance", "noise_appearance"];
    const STEPS: [&str; 7] = [
        "start_motion",
        "noise_motion",
        "start_appearance",
        "noise_appearance",
        "timestep_appearance",
        "timestep_motion",
        "anchor",
    ];
    let config = job.config;
    let by_settings = job.latent_size()?;
    let size = draws.and_then(|d| d.latent_size(&VIDEOS)).unwrap_or(by_settings);
    engine.check_frames(config, size.frames)?;
    let steps = steps(job, "ttt", draws, &STEPS)?;
    let appearance_frames = if config.is("ttt.appearance_frames", "one") { 1 } else { size.frames };
    let mut numbers = draws.map_or(Ok(TttDraws::default()), |d| d.ttt(size, appearance_frames))?;
    if let Some(draws) = draws {
        let sets = [&prompts.appearance, &prompts.motion, &prompts.student, &prompts.uncond];
        let names = ["context_appearance", "context_motion", "context_student", "context_uncond"];
        for ((chosen, set), name) in numbers.prompts.iter_mut().zip(sets).zip(names) {
            // One row a step, or one for all.
            let rows = set.shape()[0];
            if draws.file().shape(name).is_some() && rows > 1 {
                if rows < steps {
                    let detail = format!("{name} has prompts for {rows} steps; {steps} steps were asked for");
                    return Err(Error::input(draws.file().path(), detail));
                }
                *chosen = Some((0..steps).collect());
            }
        }
    }
    let [spatial, temporal] = trained_pair(job, engine, draws)?;
    let settings = ttt_config(job, steps, appearance_frames, size);
    warn_of_unused(job, draws);
    let data = TttData {
        spatial: &spatial,
        temporal: &temporal,
        appearance: &prompts.appearance,
        motion: &prompts.motion,
        student: &prompts.student,
        uncond: &prompts.uncond,
        latent: [size.frames, size.height, size.width, 4],
    };
    let both = Lora { pairs: [&spatial.pairs[..], &temporal.pairs[..]].concat() };
    let mut outputs = Vec::new();
    for (kind, name, key) in
        [(Kind::Spatial, "ttt_spatial", "ttt.spatial_out"), (Kind::Temporal, "ttt_temporal", "ttt.temporal_out")]
    {
        let kept = job.lora_path(&format!("{name}{suffix}"));
        outputs.extend(kept.into_iter().chain(config.path(key)).map(|path| (Some(kind), path)));
    }
    let name = format!("ttt{suffix}");
    let mut frame = training(job, engine, "ttt", name.clone(), &settings.stage, outputs.clone());
    let (unet, base, schedule) = (&engine.unet, &engine.base, &engine.schedule);
    let trained = engine.device.run(|| {
        frame.run(both, |state, observe| ttt::train(unet, base, schedule, data, &settings, &numbers, state, observe))
    })?;
    report(job, &name, &trained, outputs);
    Ok(())
}

fn ttt_config(job: &Job, steps: usize, appearance_frames: usize, size: LatentSize) -> TttConfig {
    let config = job.config;
    let partial = config.is("ttt.reference", "partial");
    TttConfig {
        stage: stage_config(job, "ttt", steps),
        reference_steps: config.count("ttt.ref_steps"),
        reference_cfg: config.real("ttt.ref_cfg") as f32,
        reference: if partial { Reference::Partial { grid: REFERENCE_GRID } } else { Reference::Clean },
        fresh_references: config.is("ttt.references", "fresh"),
        appearance_frames: (appearance_frames != size.frames).then_some(appearance_frames),
        appearance_motion: config.on("ttt.student_motion"),
        motion_loss: loss(config.is("ttt.loss", "plain")),
    }
}

/// The trained spatial and temporal LoRA: given, of this run, or in the file of draws.
fn trained_pair(job: &Job, engine: &Engine, draws: Option<&Draws>) -> Result<[Lora; 2]> {
    let drawn = draws.map_or(Ok(None), |d| loras::from_draws(d.file(), &engine.unet))?;
    let find = |kind: Kind, key: &str| {
        let of_run = job.lora_path(table(kind)).filter(|p| p.exists());
        let path = match (job.config.path(key).or(of_run), &drawn) {
            (Some(path), _) => path,
            (None, Some(drawn)) if !drawn.of_kind(kind).pairs.is_empty() => return Ok(drawn.of_kind(kind)),
            (None, _) => job.config.required_path(key, "test-time training starts from it")?,
        };
        let lora = loras::read(&path, &engine.unet)?;
        let wanted = lora.of_kind(kind);
        if wanted.pairs.len() != lora.pairs.len() {
            return Err(Error::model(path, format!("is not a {} LoRA, or not only that", table(kind))));
        }
        Ok(wanted)
    };
    Ok([find(Kind::Spatial, "ttt.spatial_lora")?, find(Kind::Temporal, "ttt.temporal_lora")?])
}

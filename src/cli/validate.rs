//! What can be known to be wrong before anything is loaded.

use std::path::PathBuf;

use super::config::Config;
use super::inputs::{self, Prompts};
use super::invocation::Task;
use super::run_folder::prepare_output;
use super::stages::REFERENCE_GRID;
use crate::{Error, Result};

/// Settings that name inputs.
pub const INPUTS: [&str; 15] = [
    "model.base",
    "model.motion_module",
    "model.domain_adapter",
    "data.subject.path",
    "data.motion.path",
    "spatial.init_lora",
    "spatial.draws",
    "temporal.init_lora",
    "temporal.draws",
    "ttt.appearance_prompts",
    "ttt.motion_prompts",
    "ttt.spatial_lora",
    "ttt.temporal_lora",
    "ttt.draws",
    "sample.draws",
];

/// Settings that name files to write.
const OUTPUTS: [&str; 8] = [
    "spatial.lora_out",
    "spatial.dump",
    "temporal.lora_out",
    "temporal.dump",
    "ttt.spatial_out",
    "ttt.temporal_out",
    "ttt.dump",
    "sample.save_latents",
];

/// Checks the settings of a command against each other and the file system.
///
/// # Errors
/// [`Error::Config`] naming the setting; [`Error::Input`] or [`Error::Model`] for a file that does not exist;
/// [`Error::Io`] for an output that cannot be written.
pub fn check(config: &Config, task: Task) -> Result<()> {
    inputs::size(config)?;
    blocks(config, "spatial.blocks", |b| !matches!(b, 3 | 5), "0, 1, 2, 4, 6, 7, 8")?;
    let temporal = "0, 1, 2, 3, 5, 6, 7, 8 (and 4 with a v2 motion module)";
    blocks(config, "temporal.blocks", |_| true, temporal)?;
    for table in ["spatial", "temporal", "ttt"] {
        let (key, steps) = (format!("{table}.dump_grads"), config.count(&format!("{table}.steps")));
        if let Some(step) = config.count_opt(&key) {
            if config.path(&format!("{table}.dump")).is_none() {
                return Err(config.error(&key, "needs --dump FILE to write to"));
            }
            if step >= steps {
                return Err(config.error(&key, format!("step {step} of {steps} steps, counted from 0")));
            }
        }
    }
    if config.is("ttt.reference", "partial") && config.count("ttt.ref_steps") > REFERENCE_GRID {
        let detail = format!("a partial reference is at most {REFERENCE_GRID} steps");
        return Err(config.error("ttt.ref_steps", detail));
    }
    needs(config, task)?;
    for key in INPUTS {
        if let Some(path) = input(config, key).filter(|p| !p.exists()) {
            let detail = format!("does not exist ({})", config.name(key));
            let weights = key.starts_with("model.") || key.contains("lora");
            return Err(if weights { Error::model(path, detail) } else { Error::input(path, detail) });
        }
    }
    for (path, _) in config.scaled_paths("sample.lora") {
        if !path.exists() {
            return Err(Error::model(path, format!("does not exist ({})", config.name("sample.lora"))));
        }
    }
    OUTPUTS.iter().filter_map(|key| config.path(key)).try_for_each(|path| prepare_output(&path))
}

/// The path of an input, without its scale.
pub fn input(config: &Config, key: &str) -> Option<PathBuf> {
    match key {
        "model.domain_adapter" => config.scaled_path(key).map(|(path, _)| path),
        _ => config.path(key),
    }
}

fn blocks(config: &Config, key: &str, exists: impl Fn(usize) -> bool, valid: &str) -> Result<()> {
    let listed = config.blocks(key).unwrap_or_default();
    match listed.iter().find(|&&b| b > 8 || !exists(b)) {
        Some(b) => Err(config.error(key, format!("block {b} has no such layers; the blocks that have are {valid}"))),
        None => Ok(()),
    }
}

/// What each command cannot do without.
fn needs(config: &Config, task: Task) -> Result<()> {
    let prompts = Prompts::new(config);
    let draws = |key: &str| config.path(key).is_some();
    let base = "see the README for where to get one, or make a random one with `customttt init-weights`";
    if task != Task::Demo {
        config.required("model.base", base)?;
    }
    let writes = |keys: &[&str]| {
        let flags: Vec<String> = keys.iter().map(|key| config.name(key)).collect();
        let given = keys.iter().any(|key| config.path(key).is_some());
        let missing = format!("missing: nothing to write to; give one of {}", flags.join(", "));
        if given { Ok(()) } else { Err(Error::config(flags[0].clone(), missing)) }
    };
    match task {
        Task::Run | Task::Demo => {
            prompts.spatial()?;
            prompts.temporal()?;
            prompts.appearance()?;
            prompts.motion()?;
            prompts.student(None)?;
            prompts.sample()?;
            if task == Task::Run {
                config.required("model.motion_module", "the motion is learned in it")?;
                inputs::existing(config, "data.subject.path", "the spatial stage learns from it")?;
                inputs::existing(config, "data.motion.path", "the temporal stage learns from it")?;
            }
        }
        Task::Spatial => {
            writes(&["output.dir", "spatial.lora_out", "spatial.dump"])?;
            if !draws("spatial.draws") {
                prompts.spatial()?;
                inputs::existing(config, "data.subject.path", "the spatial stage learns from it")?;
            }
        }
        Task::Temporal => {
            writes(&["output.dir", "temporal.lora_out", "temporal.dump"])?;
            config.required("model.motion_module", "the motion is learned in it")?;
            if !draws("temporal.draws") {
                prompts.temporal()?;
                inputs::existing(config, "data.motion.path", "the temporal stage learns from it")?;
            }
        }
        Task::Ttt => {
            writes(&["output.dir", "ttt.spatial_out", "ttt.temporal_out", "ttt.dump"])?;
            config.required("model.motion_module", "the motion is learned in it")?;
            if !draws("ttt.draws") {
                config.required("ttt.spatial_lora", "test-time training starts from it")?;
                config.required("ttt.temporal_lora", "test-time training starts from it")?;
                prompts.appearance()?;
                prompts.motion()?;
                prompts.student(None)?;
            }
        }
        Task::Sample => {
            writes(&["output.dir", "sample.save_latents"])?;
            if config.texts("sample.prompts").len() > 1 && config.path("sample.save_latents").is_some() {
                return Err(config.error("sample.save_latents", "is one file, for one prompt; use -o for several"));
            }
            if !draws("sample.draws") {
                prompts.sample()?;
                if config.count("data.frames") > 1 {
                    config.required("model.motion_module", "more than one frame needs it")?;
                }
            }
        }
    }
    Ok(())
}

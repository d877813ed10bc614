//! A job: the stages of one command, on the models and inputs its settings name, with everything kept in a run folder
//! if it has one. What is there already is not done again, which is all that `resume` is.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::draws::{Draws, LatentSize};
use super::inputs;
use super::invocation::{Invocation, Task};
use super::progress::{Reporter, number};
use super::run_folder::{self, RunFolder};
use super::signals::Stop;
use super::{demo, output, validate};
use crate::model::lora::Kind;
use crate::{Device, Error, Result};

/// One command in progress.
pub struct Job<'j> {
    pub config: &'j Config,
    pub device: Device,
    pub folder: Option<RunFolder>,
    pub stop: Option<Stop>,
    pub reporter: Reporter,
    /// The object of `--json`.
    pub results: Map<String, Json>,
    /// The lines of stdout without `--json`.
    pub paths: Vec<PathBuf>,
}

/// Runs a command from the beginning.
///
/// # Errors
/// Those of its stages.
pub fn start(invocation: &Invocation, task: Task, mut config: Config) -> Result<()> {
    let mut reporter = reporter(invocation, &config)?;
    let (device, line) = super::device(&config)?;
    if task == Task::Demo {
        demo::fill(&mut config);
    }
    validate::check(&config, task)?;
    let whole = matches!(task, Task::Run | Task::Demo);
    let path = config.path("output.dir").or_else(|| whole.then(|| run_folder::default_path(task.name())));
    let folder = path.as_deref().map(RunFolder::create).transpose()?;
    if let Some(folder) = &folder {
        reporter.say(format!("run folder: {}", folder.path().display()));
        reporter.add_events(&folder.path().join("events.jsonl").to_string_lossy())?;
    }
    line.iter().for_each(|line| reporter.say(line));
    reporter.say(format!("seed: {}", config.seed()));
    for (key, before, now) in config.preset_changes() {
        reporter.say(format!("preset fast: {key} = {now} instead of {before}"));
    }
    if task == Task::Demo {
        let folder = folder.as_ref().expect("a demo should have a run folder");
        demo::prepare(&mut config, folder.path(), &mut reporter)?;
    }
    let hashes = match &folder {
        Some(folder) => {
            folder.write_config(&config)?;
            Some(record(folder, task, &config, &device)?)
        }
        None => None,
    };
    finish(invocation, task, &config, device, folder, reporter, hashes)
}

/// Goes on with a run.
///
/// # Errors
/// Those of the remaining stages.
pub fn resume(invocation: &Invocation, path: &Path) -> Result<()> {
    let folder = RunFolder::open(path)?;
    let name = folder.recorded_command()?;
    let task = Task::named(&name).ok_or_else(|| {
        Error::config(folder.record_path().display().to_string(), format!("no command is called {name:?}"))
    })?;
    let mut layers = super::config::Layers { file: Some(folder.config_path()), ..Default::default() };
    layers.flags = invocation.layers.flags.clone();
    // The environment was resolved into the file when the run began.
    let config = Config::resolve(&layers, std::iter::empty(), task.bit())?;
    let mut reporter = reporter(invocation, &config)?;
    reporter.say(format!("run folder: {}", folder.path().display()));
    reporter.add_events(&folder.path().join("events.jsonl").to_string_lossy())?;
    let (device, line) = super::device(&config)?;
    line.iter().for_each(|line| reporter.say(line));
    reporter.say(format!("seed: {}", config.seed()));
    finish(invocation, task, &config, device, Some(folder), reporter, None)
}

fn reporter(invocation: &Invocation, config: &Config) -> Result<Reporter> {
    let mut reporter = Reporter::new(config.text("log.progress").unwrap_or("auto"), invocation.verbosity);
    if let Some(target) = config.text("log.events") {
        if target == "-" && invocation.json {
            return Err(config.error("log.events", "- is stdout, which --json needs for itself"));
        }
        reporter.add_events(target)?;
    }
    Ok(reporter)
}

/// Writes `run.json`, and begins to hash the inputs for it: gigabytes, which the job need not wait for.
fn record(folder: &RunFolder, task: Task, config: &Config, device: &Device) -> Result<JoinHandle<Result<()>>> {
    // A demo, once its inputs are drawn, is a run.
    let name = if task == Task::Demo { Task::Run.name() } else { task.name() };
    let record = folder.record(name, config, &device.to_string());
    record.write(None)?;
    let mut inputs: Vec<PathBuf> = config.scaled_paths("sample.lora").into_iter().map(|(path, _)| path).collect();
    for key in validate::INPUTS {
        match (key, validate::input(config, key)) {
            // The folder may hold much else, such as the same weights in other formats.
            ("model.base", Some(base)) => {
                let parts = ["unet", "vae", "text_encoder", "tokenizer"].map(|part| base.join(part));
                inputs.extend(parts.into_iter().filter(|part| part.exists()));
            }
            (_, path) => inputs.extend(path),
        }
    }
    Ok(thread::spawn(move || record.write(Some(&inputs))))
}

fn finish(
    invocation: &Invocation,
    task: Task,
    config: &Config,
    device: Device,
    folder: Option<RunFolder>,
    reporter: Reporter,
    hashes: Option<JoinHandle<Result<()>>>,
) -> Result<()> {
    // Without a place to save to, a signal ends the program as it would any other.
    let saves = folder.is_some()
        || ["spatial.lora_out", "temporal.lora_out", "ttt.spatial_out"].iter().any(|k| config.given(k));
    let stop = saves.then(Stop::on_signals).transpose()?;
    let mut job = Job { config, device, folder, stop, reporter, results: Map::new(), paths: Vec::new() };
    job.reporter.event("run.start", json!({ "command": task.name(), "seed": config.seed() }));
    let result = job.run(task);
    if let Some(hashes) = hashes {
        hashes.join().unwrap_or(Ok(()))?;
    }
    let status = result.as_ref().err().map_or(0, Error::exit_code);
    job.reporter.event("run.end", json!({ "exit_code": status }));
    if let (Err(Error::Cancelled { .. }), Some(folder)) = (&result, &job.folder) {
        job.reporter.say(format!("go on with: customttt resume {}", folder.path().display()));
    }
    result?;
    if let Some(folder) = &job.folder {
        folder.mark_done()?;
        job.results.insert("run".into(), json!(folder.path()));
    }
    job.results.insert("seed".into(), config.seed().into());
    let times = job.reporter.times();
    let seconds: Map<String, Json> = times.iter().map(|(n, t)| (n.clone(), number(t.as_secs_f64()))).collect();
    let text: Vec<String> = times.iter().map(|(n, t)| format!("{n} {:.1} s", t.as_secs_f64())).collect();
    if !text.is_empty() {
        job.reporter.say(format!("time: {}", text.join(", ")));
    }
    job.results.insert("seconds".into(), seconds.into());
    let lines = || job.paths.iter().map(|p| format!("{}\n", p.display())).collect();
    output::result(invocation.json, &Json::Object(job.results.clone()), lines)
}

impl Job<'_> {
    fn run(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Run | Task::Demo => self.whole(),
            Task::Spatial => self.one_lora(Kind::Spatial),
            Task::Temporal => self.one_lora(Kind::Temporal),
            Task::Ttt => self.only_ttt(),
            Task::Sample => self.only_sample(),
        }
    }

    /// The LoRA file of a stage in the run folder.
    pub fn lora_path(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|f| f.lora(name))
    }

    /// Opens a file of draws, if one is given.
    pub fn draws(&self, key: &str) -> Result<Option<Draws>> {
        self.config.path(key).map(|path| Draws::open(&path, &self.device)).transpose()
    }

    /// Sizes of the video's latents by the settings.
    pub fn latent_size(&self) -> Result<LatentSize> {
        let (width, height) = inputs::size(self.config)?;
        Ok(LatentSize { frames: self.config.count("data.frames"), height: height / 8, width: width / 8 })
    }
}

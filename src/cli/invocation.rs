//! What the command line says, as types.

use std::path::PathBuf;

use clap_complete::Shell;

use super::config::Layers;
use super::flags;

/// A command with what only it takes.
#[derive(Debug)]
pub enum Verb {
    Job(Task),
    Resume { run: PathBuf },
    Forward(Forward),
    InitWeights(InitWeights),
    Info,
    Completions(Shell),
}

/// The commands that run stages of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Run,
    Demo,
    Spatial,
    Temporal,
    Ttt,
    Sample,
}

impl Task {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Task::Run => "run",
            Task::Demo => "demo",
            Task::Spatial => "train spatial",
            Task::Temporal => "train temporal",
            Task::Ttt => "ttt",
            Task::Sample => "sample",
        }
    }

    /// The task of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Task::Run, Task::Demo, Task::Spatial, Task::Temporal, Task::Ttt, Task::Sample]
            .into_iter()
            .find(|t| t.name() == name)
    }

    /// Its bit in [`Flag::on`].
    pub fn bit(self) -> u16 {
        match self {
            Task::Run => flags::RUN,
            Task::Demo => flags::DEMO,
            Task::Spatial => flags::SPATIAL,
            Task::Temporal => flags::TEMPORAL,
            Task::Ttt => flags::TTT,
            Task::Sample => flags::SAMPLE,
        }
    }
}

/// `forward MODULE`.
#[derive(Debug)]
pub struct Forward {
    pub module: String,
    pub clip: Option<PathBuf>,
    pub input: Option<PathBuf>,
    pub output: PathBuf,
    pub prompts: Vec<String>,
    pub bypass_motion: bool,
    pub bypass_single_frame: bool,
}

/// `init-weights OUT`.
#[derive(Debug)]
pub struct InitWeights {
    pub size: String,
    pub dtype: String,
    pub out: PathBuf,
}

/// Everything the command line says.
#[derive(Debug)]
pub struct Invocation {
    pub verb: Verb,
    pub layers: Layers,
    pub json: bool,
    /// Negative: quiet; positive: verbose.
    pub verbosity: i8,
}

impl Invocation {
    /// The bit of the command in [`Flag::on`].
    pub fn bit(&self) -> u16 {
        match &self.verb {
            Verb::Job(task) => task.bit(),
            Verb::Resume { .. } => flags::RESUME,
            Verb::Forward(_) => flags::FORWARD,
            Verb::InitWeights(_) | Verb::Info | Verb::Completions(_) => flags::PLAIN,
        }
    }
}

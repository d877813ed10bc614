//! The command line: raw arguments, the validated configuration made of them, and the calls into the library.
//!
//! `args` parses, `config` layers and checks, the rest acts. Only this module prints, reads the environment or
//! decides the exit status.

mod args;
mod clock;
mod commands;
mod config;
mod config_file;
mod demo;
mod draws;
mod engine;
mod flags;
mod forward;
mod info;
mod init_weights;
mod inputs;
mod invocation;
mod job;
mod kind;
mod layers;
mod layout;
mod lesson;
mod loras;
mod output;
mod progress;
mod prompts;
mod run_folder;
mod sampling;
mod settings;
mod signals;
mod stages;
mod training;
mod validate;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use config::Config;
use invocation::{Invocation, Verb};

use crate::{Device, Error, Result};

/// Runs the program; returns its exit status.
pub fn main() -> ExitCode {
    let invocation = match args::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Help goes to stdout, mistakes to stderr; a reader that left is no reason to fail.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    panic::set_hook(Box::new(|_| {}));
    match panic::catch_unwind(AssertUnwindSafe(|| dispatch(&invocation))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            output::error(&error, invocation.json);
            ExitCode::from(error.exit_code())
        }
        Err(payload) => {
            output::panic(&panic_text(payload));
            ExitCode::from(1)
        }
    }
}

fn dispatch(invocation: &Invocation) -> Result<()> {
    let config = || Config::resolve(&invocation.layers, environment(), invocation.bit());
    match &invocation.verb {
        Verb::Info => {
            let report = info::report();
            output::result(invocation.json, &report, || info::lines(&report))
        }
        Verb::Completions(shell) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut args::tree(), "customttt", &mut script);
            output::bytes(&script)
        }
        Verb::Resume { run } => job::resume(invocation, run),
        Verb::Job(task) => job::start(invocation, *task, config()?),
        Verb::Forward(args) => forward::run(invocation, args, &config()?),
        Verb::InitWeights(args) => init_weights::run(invocation, args, &config()?),
    }
}

/// The environment's variables that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
}

/// The device a configuration asks for, and a line for the user where the choice was left open.
///
/// # Errors
/// [`Error::Device`] for a device this build or machine does not have; [`Error::Config`] for a name that is none.
fn device(config: &Config) -> Result<(Device, Option<String>)> {
    let threads = config.count_opt("threads");
    match config.text("device").unwrap_or("auto") {
        "cpu" => Ok((Device::cpu(threads)?, None)),
        "auto" => {
            let device = Device::cpu(threads)?;
            let line = format!("device: {device}; this build has no CUDA support");
            Ok((device, Some(line)))
        }
        name if name == "cuda" || name.strip_prefix("cuda:").is_some_and(|i| i.parse::<usize>().is_ok()) => {
            Err(Error::Device { device: name.into(), detail: "this build has no CUDA support".into() })
        }
        other => Err(config.error("device", format!("{other:?} is none of auto, cpu, cuda, cuda:N"))),
    }
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or(payload.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_default()
}

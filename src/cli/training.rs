//! Running one training stage: from its saved state if there is one, with progress, saving, stopping and dumps.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::loras;
use super::progress::{Reporter, Tick};
use super::run_folder::prepare_output;
use super::signals::Stop;
use crate::data::{NamedTensors, TensorWriter};
use crate::model::lora::{Kind, Lora};
use crate::train::{LoraGradients, Observe, StepReport, TrainState};
use crate::{Device, Error, Result, Tensor};

/// A stage as the job sees it.
pub struct Training<'t> {
    pub name: String,
    pub steps: usize,
    pub lr: f64,
    pub device: &'t Device,
    /// Where the state is kept between steps; in a run folder only.
    pub checkpoint: Option<PathBuf>,
    pub save_every: usize,
    /// Files for the trained LoRA, whole or of one kind.
    pub outputs: Vec<(Option<Kind>, PathBuf)>,
    pub dump: Option<Dump>,
    pub stop: Option<Stop>,
    pub reporter: &'t mut Reporter,
}

/// A file of losses, and of one step's gradients.
#[derive(Clone, Debug)]
pub struct Dump {
    pub path: PathBuf,
    pub gradients_of: Option<usize>,
}

/// What comes of a stage.
pub struct Trained {
    pub lora: Lora,
    pub losses: Vec<Vec<f32>>,
}

/// What is collected on the way.
#[derive(Default)]
struct Collected {
    losses: Vec<Vec<f32>>,
    gradients: Vec<(String, Tensor)>,
    failure: Option<Error>,
}

impl Training<'_> {
    /// Trains `lora` by `train`, which is given the state and the observer.
    ///
    /// # Errors
    /// Those of `train`. After [`Error::Cancelled`] the state is saved; after [`Error::NonFinite`] the last good LoRA.
    pub fn run(
        &mut self,
        lora: Lora,
        train: impl FnOnce(&mut TrainState, &mut Observe) -> Result<()>,
    ) -> Result<Trained> {
        for path in self.outputs.iter().map(|(_, path)| path).chain(self.dump.iter().map(|d| &d.path)) {
            prepare_output(path)?;
        }
        let mut state = TrainState::new(lora);
        let mut collected = Collected::default();
        if let Some(path) = self.checkpoint.as_deref().filter(|p| p.exists()) {
            collected.losses = loras::read_state(path, &mut state, self.device)?;
            collected.gradients = self.earlier_gradients()?;
        }
        self.reporter.stage_start(&self.name, self.steps, state.step);
        let result = train(&mut state, &mut |report| self.observe(report, &mut collected));
        self.reporter.stage_end();
        if let Some(failure) = collected.failure {
            return Err(failure);
        }
        match result {
            Ok(()) => {
                self.write_dump(&collected)?;
                self.write_outputs(&state.lora)?;
                if let Some(checkpoint) = self.checkpoint.as_deref().filter(|p| p.exists()) {
                    std::fs::remove_file(checkpoint).map_err(Error::io(checkpoint, "remove"))?;
                }
                Ok(Trained { lora: state.lora, losses: collected.losses })
            }
            Err(error) => {
                self.rescue(&error, &state, &collected)?;
                Err(error)
            }
        }
    }

    fn observe(&mut self, report: &StepReport, collected: &mut Collected) -> ControlFlow<()> {
        collected.losses.push(report.losses.to_vec());
        if self.dump.as_ref().is_some_and(|d| d.gradients_of == Some(report.step)) {
            collected.gradients = named_gradients(&report.state.lora, report.gradients);
        }
        let loss = report.losses.iter().map(|&l| f64::from(l)).collect();
        self.reporter.step(&Tick { done: report.step + 1, loss, lr: Some(self.lr) });
        let due = (report.step + 1).is_multiple_of(self.save_every) && report.step + 1 < self.steps;
        if due && let Err(error) = self.save(report.state, collected) {
            collected.failure = Some(error);
            return ControlFlow::Break(());
        }
        if self.stop.as_ref().is_some_and(Stop::requested) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn save(&mut self, state: &TrainState, collected: &Collected) -> Result<()> {
        if let Some(path) = &self.checkpoint {
            loras::write_state(state, &collected.losses, path)?;
            self.write_dump(collected)?;
            self.reporter
                .event("checkpoint", serde_json::json!({ "stage": self.name, "step": state.step, "path": path }));
        }
        Ok(())
    }

    /// After a stop or a failure: keeps what there is.
    fn rescue(&mut self, error: &Error, state: &TrainState, collected: &Collected) -> Result<()> {
        let cancelled = matches!(error, Error::Cancelled { .. });
        if !cancelled && !matches!(error, Error::NonFinite { .. }) {
            return Ok(());
        }
        self.save(state, collected)?;
        match (&self.checkpoint, cancelled) {
            // The state file has the LoRA; a finished-looking file would end the stage.
            (Some(_), true) => Ok(()),
            (Some(checkpoint), false) => {
                let path = checkpoint.with_file_name(format!("{}_step-{:06}.safetensors", self.name, state.step));
                loras::write(&state.lora, &path)?;
                self.reporter.say(format!("the LoRA after {} good steps is in {}", state.step, path.display()));
                Ok(())
            }
            (None, _) => {
                self.write_dump(collected)?;
                self.write_outputs(&state.lora)?;
                let files: Vec<String> = self.outputs.iter().map(|(_, p)| p.display().to_string()).collect();
                self.reporter.say(format!("the LoRA after {} steps is in {}", state.step, files.join(", ")));
                Ok(())
            }
        }
    }

    fn write_outputs(&self, lora: &Lora) -> Result<()> {
        self.outputs.iter().try_for_each(|(kind, path)| match kind {
            Some(kind) => loras::write(&lora.of_kind(*kind), path),
            None => loras::write(lora, path),
        })
    }

    fn write_dump(&self, collected: &Collected) -> Result<()> {
        let Some(dump) = &self.dump else { return Ok(()) };
        let mut out = TensorWriter::new();
        let (steps, parts) = (collected.losses.len(), collected.losses.first().map_or(1, Vec::len));
        let losses = collected.losses.concat();
        if parts == 1 {
            out.floats("loss", [steps], losses);
        } else {
            out.floats("loss", [steps, parts], losses);
        }
        for (name, gradient) in &collected.gradients {
            out.floats(name.clone(), gradient.shape(), gradient.to_vec());
        }
        out.write(&dump.path)
    }

    /// Gradients that an earlier part of this run dumped.
    fn earlier_gradients(&self) -> Result<Vec<(String, Tensor)>> {
        let Some(path) = self.dump.as_ref().map(|d| d.path.as_path()).filter(|p: &&Path| p.exists()) else {
            return Ok(Vec::new());
        };
        let file = NamedTensors::open(path)?;
        let names: Vec<String> = file.names().filter(|n| n.starts_with("grad.")).map(String::from).collect();
        let mut gradients = Vec::with_capacity(names.len());
        for name in names {
            if let Some((shape, numbers)) = file.floats(&name)? {
                gradients.push((name, Tensor::from_slice(self.device, shape, &numbers)?));
            }
        }
        Ok(gradients)
    }
}

fn named_gradients(lora: &Lora, gradients: &LoraGradients) -> Vec<(String, Tensor)> {
    let named = |(pair, (down, up)): (&crate::model::lora::LoraPair, &(Tensor, Tensor))| {
        let [a, b] = loras::keys(&pair.module).map(|key| format!("grad.{key}"));
        [(a, down.clone()), (b, up.clone())]
    };
    lora.pairs.iter().zip(&gradients.pairs).flat_map(named).collect()
}

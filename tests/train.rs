//! Gradients, trajectories and sampling against PyTorch.

mod common;

use std::ops::ControlFlow;

use common::{Fixture, device, distance, distance_rows, unet};
use customttt::diffusion::{Guidance, SampleConfig, Schedule, sample};
use customttt::model::config::MotionNorm;
use customttt::model::lora::{Lora, Targets};
use customttt::model::unet::{Motion, UNet};
use customttt::nn::{Changes, Context};
use customttt::train::spatial::{self, SpatialData, SpatialDraws};
use customttt::train::temporal::{self, TemporalData, TemporalDraws, TemporalLoss};
use customttt::train::ttt::{self, TttConfig, TttData, TttDraws};
use customttt::train::{Stage, StageConfig, StepReport, TrainState};
use customttt::{Device, Error, Result};

/// What a stage did: losses of every step, gradients of the first, and where it ended.
struct Outcome {
    losses: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
    state: TrainState,
}

struct Recording {
    losses: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

impl Recording {
    fn new() -> Self {
        Recording { losses: Vec::new(), gradients: Vec::new() }
    }

    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        self.losses.extend(report.losses);
        if report.step == 0 {
            for (pair, (down, up)) in report.state.lora.pairs.iter().zip(&report.gradients.pairs) {
                self.gradients.push((format!("unet.{}.lora_A.weight", pair.module), down.to_vec()));
                self.gradients.push((format!("unet.{}.lora_B.weight", pair.module), up.to_vec()));
            }
        }
        ControlFlow::Continue(())
    }

    fn with(self, state: TrainState) -> Outcome {
        Outcome { losses: self.losses, gradients: self.gradients, state }
    }
}

fn config(stage: Stage, steps: usize) -> StageConfig {
    StageConfig { steps, dropout: 0.0, ..StageConfig::paper(stage) }
}

fn lora(device: &Device, f: &Fixture, unet: &UNet, targets: &[Targets]) -> Result<Lora> {
    let mut modules = Vec::new();
    for t in targets {
        modules.extend(t.layers(unet)?.into_iter().map(|l| l.name()));
    }
    f.lora(device, "", &modules)
}

fn train_spatial(f: &Fixture, config: &StageConfig) -> Result<Outcome> {
    let device = device();
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let latents = f.rows(&device, "latents")?;
    let draws = SpatialDraws {
        image_index: Some(f.integers("image_index")),
        timestep: Some(f.integers("timestep")),
        noise: Some(f.rows(&device, "noise")?),
    };
    let mut state = TrainState::new(lora(&device, f, &unet, &[Targets::spatial()])?);
    let mut record = Recording::new();
    let data = SpatialData { latents: &latents, context: &context };
    let observe = &mut |r: &StepReport| record.step(r);
    spatial::train(&unet, &Changes::none(), &Schedule::default(), data, config, &draws, &mut state, observe)?;
    Ok(record.with(state))
}

fn train_temporal(f: &Fixture, config: &StageConfig, loss: TemporalLoss) -> Result<Outcome> {
    let device = device();
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let latents = f.rows(&device, "latents")?;
    let draws = TemporalDraws {
        timestep: Some(f.integers("timestep")),
        anchor: Some(f.integers("anchor")),
        noise: Some(f.rows(&device, "noise")?),
    };
    let mut state = TrainState::new(lora(&device, f, &unet, &[Targets::temporal()])?);
    let mut record = Recording::new();
    let data = TemporalData { latents: &latents, context: &context };
    let observe = &mut |r: &StepReport| record.step(r);
    temporal::train(&unet, &Changes::none(), &Schedule::default(), data, loss, config, &draws, &mut state, observe)?;
    Ok(record.with(state))
}

fn train_ttt(f: &Fixture, config: &StageConfig) -> Result<Outcome> {
    let device = device();
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let tensor = |name: &str| f.tensor(&device, name);
    let (appearance, motion) = (tensor("context_appearance")?, tensor("context_motion")?);
    let (student, uncond) = (tensor("context_student")?, tensor("context_uncond")?);
    let prompts = [&appearance, &motion, &student, &uncond];
    let rows = |name: &str| f.rows(&device, name).map(Some);
    let draws = TttDraws {
        prompts: prompts.map(|p| (p.shape()[0] > 1).then(|| (0..p.shape()[0]).collect())),
        start_appearance: rows("start_appearance")?,
        start_motion: rows("start_motion")?,
        timestep_appearance: Some(f.integers("timestep_appearance")),
        timestep_motion: Some(f.integers("timestep_motion")),
        noise_appearance: rows("noise_appearance")?,
        noise_motion: rows("noise_motion")?,
        anchor: None,
    };
    let (spatial, temporal) =
        (lora(&device, f, &unet, &[Targets::spatial()])?, lora(&device, f, &unet, &[Targets::temporal()])?);
    let both = Lora { pairs: [&spatial.pairs[..], &temporal.pairs].concat() };
    let mut state = TrainState::new(both);
    let mut record = Recording::new();
    let data = TttData {
        spatial: &spatial,
        temporal: &temporal,
        appearance: &appearance,
        motion: &motion,
        student: &student,
        uncond: &uncond,
        latent: [4, 8, 8, 4],
    };
    let config = TttConfig { stage: config.clone(), ..TttConfig::default() };
    let observe = &mut |r: &StepReport| record.step(r);
    ttt::train(&unet, &Changes::none(), &Schedule::default(), data, &config, &draws, &mut state, observe)?;
    Ok(record.with(state))
}

fn check_losses(name: &str, outcome: &Outcome, f: &Fixture) {
    let want = &f.get("loss").data;
    assert_eq!(outcome.losses.len(), want.len(), "{name}: number of losses");
    for (i, (got, want)) in outcome.losses.iter().zip(want).enumerate() {
        let error = f64::from((got - want).abs()) / f64::from(want.abs());
        assert!(error <= 1e-5, "{name}: loss {i} is {got}, not {want}");
    }
}

fn check_gradients(name: &str, outcome: &Outcome, f: &Fixture) {
    let stored = f.tensors.keys().filter(|k| k.starts_with("grad.")).count();
    assert_eq!(outcome.gradients.len(), stored, "{name}: every parameter has a gradient");
    for (key, got) in &outcome.gradients {
        let error = distance(got, &f.get(&format!("grad.{key}")).data);
        assert!(error <= 1e-4, "{name}: gradient of {key} off by {error:e}");
    }
}

/// At most 0.5 % of the elements may end further than half a step from PyTorch's.
fn check_final(name: &str, outcome: &Outcome, f: &Fixture, lr: f32) {
    let (mut off, mut all) = (0, 0);
    for pair in &outcome.state.lora.pairs {
        for (leaf, tensor) in [("lora_A", &pair.down), ("lora_B", &pair.up)] {
            let want = &f.get(&format!("final.unet.{}.{leaf}.weight", pair.module)).data;
            off += tensor.to_vec().iter().zip(want).filter(|(g, w)| (*g - *w).abs() > 0.5 * lr).count();
            all += want.len();
        }
    }
    assert!(off * 200 <= all, "{name}: {off} of {all} elements differ by more than half a step");
}

#[test]
fn gradients_match_pytorch() -> Result<()> {
    for recompute in [false, true] {
        let one = |stage| StageConfig { recompute, ..config(stage, 1) };
        let f = Fixture::read("grads_spatial");
        let outcome = train_spatial(&f, &one(Stage::Spatial))?;
        check_losses("spatial", &outcome, &f);
        check_gradients("spatial", &outcome, &f);
        for (name, loss) in [("plain", TemporalLoss::Plain), ("debiased", TemporalLoss::Debiased)] {
            let f = Fixture::read(&format!("grads_temporal_{name}"));
            let outcome = train_temporal(&f, &one(Stage::Temporal), loss)?;
            check_losses(name, &outcome, &f);
            check_gradients(name, &outcome, &f);
        }
        let f = Fixture::read("grads_ttt");
        let outcome = train_ttt(&f, &one(Stage::Ttt))?;
        check_losses("ttt", &outcome, &f);
        check_gradients("ttt", &outcome, &f);
    }
    Ok(())
}

#[test]
fn recomputed_gradients_have_the_same_bits() -> Result<()> {
    let f = Fixture::read("grads_ttt");
    let stored = train_ttt(&f, &config(Stage::Ttt, 1))?;
    let recomputed = train_ttt(&f, &StageConfig { recompute: true, ..config(Stage::Ttt, 1) })?;
    assert_eq!(stored.gradients, recomputed.gradients);
    Ok(())
}

#[test]
fn twenty_steps_follow_pytorch() -> Result<()> {
    let f = Fixture::read("trajectory_spatial");
    let outcome = train_spatial(&f, &config(Stage::Spatial, 20))?;
    check_losses("spatial", &outcome, &f);
    check_final("spatial", &outcome, &f, 1e-5);
    let f = Fixture::read("trajectory_temporal");
    let outcome = train_temporal(&f, &config(Stage::Temporal, 20), TemporalLoss::Debiased)?;
    check_losses("temporal", &outcome, &f);
    check_final("temporal", &outcome, &f, 5e-5);
    let mut f = Fixture::read("trajectory_ttt");
    let outcome = train_ttt(&f, &config(Stage::Ttt, 20))?;
    check_losses("ttt", &outcome, &f);
    check_final("ttt", &outcome, &f, 1e-6);
    f.tensors.extend(Fixture::read("trajectory_ttt_fast").tensors);
    let mut fast = config(Stage::Ttt, 20);
    fast.lion.lr = 1e-4;
    let outcome = train_ttt(&f, &fast)?;
    check_losses("ttt fast", &outcome, &f);
    check_final("ttt fast", &outcome, &f, 1e-4);
    Ok(())
}

#[test]
fn sampling_matches_pytorch() -> Result<()> {
    let (device, f) = (device(), Fixture::read("ddim"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let guidance = Guidance::new(&f.tensor(&device, "context")?, &f.tensor(&device, "context_uncond")?, 9.0)?;
    for steps in [5, 25] {
        let config = SampleConfig { steps, stop_after: None, motion: Motion::Auto };
        let start = f.rows(&device, "latents")?;
        let end = sample(&unet, &Schedule::default(), &start, &guidance, config, &Changes::none(), &mut |_| {
            ControlFlow::Continue(())
        })?;
        let error = distance_rows(&end, f.get(&format!("n{steps}.final")));
        assert!(error <= 1e-4, "{steps} steps: off by {error:e}");
    }
    Ok(())
}

#[test]
fn a_stopped_stage_goes_on_to_the_same_bits() -> Result<()> {
    let f = Fixture::read("trajectory_spatial");
    let device = device();
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let latents = f.rows(&device, "latents")?;
    let data = SpatialData { latents: &latents, context: &context };
    let config = StageConfig { dropout: 0.1, ..config(Stage::Spatial, 6) };
    let layers = Targets::spatial().layers(&unet)?;
    let fresh = || Ok::<_, Error>(TrainState::new(Lora::init(&device, &layers, 4, customttt::Philox::new(3, 1))?));
    let run = |state: &mut TrainState, stop: Option<usize>| {
        let observe = &mut |r: &StepReport| match stop {
            Some(s) if r.step + 1 == s => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let schedule = Schedule::default();
        spatial::train(&unet, &Changes::none(), &schedule, data, &config, &SpatialDraws::default(), state, observe)
    };
    let bits = |s: &TrainState| {
        let numbers =
            s.lora.pairs.iter().zip(&s.momenta).flat_map(|(p, m)| {
                [&p.down, &p.up, &m.0, &m.1].into_iter().flat_map(|t| t.to_vec()).collect::<Vec<_>>()
            });
        numbers.map(f32::to_bits).collect::<Vec<_>>()
    };
    let mut whole = fresh()?;
    run(&mut whole, None)?;
    for stop in 1..6 {
        let mut state = fresh()?;
        let stopped = run(&mut state, Some(stop)).expect_err("the stage should stop");
        assert!(matches!(stopped, Error::Cancelled { step, .. } if step == stop), "{stopped}");
        run(&mut state, None)?;
        assert_eq!(bits(&state), bits(&whole), "stopped after {stop}");
    }
    Ok(())
}

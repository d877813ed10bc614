//! The temporal stage with a throw-away spatial LoRA beside it.

mod common;

use std::ops::ControlFlow;

use common::{Fixture, device, unet};
use customttt::diffusion::Schedule;
use customttt::model::config::MotionNorm;
use customttt::model::lora::{Kind, Lora, Targets};
use customttt::nn::{Changes, Context};
use customttt::ops::lion::Lion;
use customttt::train::joint::{self, JointConfig, sits_out};
use customttt::train::temporal::{self, TemporalData, TemporalDraws, TemporalLoss};
use customttt::train::{Stage, StageConfig, StepReport, TrainState};
use customttt::{Philox, Result};

#[test]
fn the_spatial_lora_learns_unless_it_sits_out() -> Result<()> {
    const STEPS: usize = 8;
    const SEED: u64 = 2;
    let (device, f) = (device(), Fixture::read("trajectory_temporal"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let fresh = |targets: Targets, stream| Lora::init(&device, &targets.layers(&unet)?, 4, Philox::new(1, stream));
    let (temporal, spatial) = (fresh(Targets::temporal(), 1)?, fresh(Targets::spatial(), 2)?);
    let (latents, context) = (f.rows(&device, "latents")?, Context::new(f.tensor(&device, "context")?));
    let data = TemporalData { latents: &latents, context: &context };
    let stage = StageConfig { steps: STEPS, dropout: 0.0, seed: SEED, ..StageConfig::paper(Stage::Temporal) };
    let lion = Lion { lr: 1e-5, ..stage.lion };
    let config = JointConfig { stage: stage.clone(), loss: TemporalLoss::Debiased, spatial_lion: lion };
    let (none, schedule, draws) = (Changes::none(), Schedule::default(), TemporalDraws::default());

    let mut losses = Vec::new();
    let mut after = vec![spatial.clone()];
    let both = Lora { pairs: [&temporal.pairs[..], &spatial.pairs[..]].concat() };
    let mut state = TrainState::new(both.clone());
    let observe = &mut |report: &StepReport| {
        losses.push(report.losses[0]);
        after.push(report.state.lora.of_kind(Kind::Spatial));
        ControlFlow::Continue(())
    };
    joint::train(&unet, &none, &schedule, data, &config, &draws, &mut state, observe)?;
    let numbers = |lora: &Lora| lora.pairs.iter().flat_map(|p| [p.down.to_vec(), p.up.to_vec()]).collect::<Vec<_>>();
    let out: Vec<bool> = (0..STEPS).map(|s| sits_out(SEED, s)).collect();
    assert!(out.contains(&true) && out.contains(&false), "both kinds of step should have been tested: {out:?}");
    for (s, pair) in after.windows(2).enumerate() {
        assert_eq!(numbers(&pair[0]) == numbers(&pair[1]), out[s], "step {s}");
    }

    // A fresh spatial LoRA adds nothing, so the first step is that of the plain stage; later ones are not.
    let mut plain = Vec::new();
    let mut alone = TrainState::new(temporal);
    let observe = &mut |report: &StepReport| {
        plain.push(report.losses[0]);
        ControlFlow::Continue(())
    };
    temporal::train(&unet, &none, &schedule, data, config.loss, &stage, &draws, &mut alone, observe)?;
    assert!((losses[0] - plain[0]).abs() <= 1e-5 * plain[0], "{} and {}", losses[0], plain[0]);
    assert!(losses[STEPS - 1] != plain[STEPS - 1]);

    // Stopped and gone on with.
    let mut parts = TrainState::new(both);
    let stop = &mut |r: &StepReport| if r.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    joint::train(&unet, &none, &schedule, data, &config, &draws, &mut parts, stop).expect_err("it should stop");
    assert_eq!(parts.step, 4);
    let go_on = &mut |_: &StepReport| ControlFlow::Continue(());
    joint::train(&unet, &none, &schedule, data, &config, &draws, &mut parts, go_on)?;
    assert_eq!(numbers(&parts.lora), numbers(&state.lora));
    Ok(())
}

//! The UNets against diffusers, on whole outputs.

mod common;

use std::path::Path;

use common::{Fixture, device, distance_rows, unet};
use customttt::data::LoraFile;
use customttt::model::config::MotionNorm;
use customttt::model::lora::Targets;
use customttt::model::unet::{Condition, Contexts, Motion, UNet};
use customttt::nn::{Changes, Context};
use customttt::{Result, Tape, Tensor, Var};

const LIMIT: f64 = 1e-5;

struct Case<'c> {
    timesteps: &'c [f32],
    frames: usize,
    motion: Motion,
    changes: &'c Changes,
}

fn run(unet: &UNet, x: &Tensor, contexts: Contexts, case: Case) -> Result<Tensor> {
    let Case { timesteps, frames, motion, changes } = case;
    let condition = Condition { timesteps, contexts, frames, motion, changes, recompute: false };
    Ok(unet.forward(&mut Tape::off(), &Var::constant(x.clone()), condition)?.tensor().clone())
}

#[test]
fn image_unet_matches_diffusers() -> Result<()> {
    let (device, f) = (device(), Fixture::read("unet2d"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let (timesteps, changes) = (f.get("timestep").data.clone(), Changes::none());
    let case = Case { timesteps: &timesteps, frames: 1, motion: Motion::Auto, changes: &changes };
    let output = run(&unet, &f.rows(&device, "sample")?, Contexts::same(&context), case)?;
    let error = distance_rows(&output, f.get("output"));
    assert!(error <= LIMIT, "off by {error:e}");
    Ok(())
}

#[test]
fn video_unet_matches_diffusers_in_every_mode() -> Result<()> {
    let (device, f) = (device(), Fixture::read("unet"));
    let context = Context::new(f.tensor(&device, "context")?);
    let first = Context::new(f.tensor(&device, "context")?.narrow(0, 1)?);
    let (timesteps, none) = (f.get("timestep").data.clone(), Changes::none());
    let x = f.rows(&device, "sample")?;
    let mut single = Vec::new(); // the first frame of both videos
    for video in 0..2 {
        single.push(x.narrow(4 * video, 1)?);
    }
    let single = Tensor::stack_rows(&[&single[0], &single[1]])?;
    let frame = unet(&device, &f.about, MotionNorm::Frame);
    let video = unet(&device, &f.about, MotionNorm::Video);
    let mut v2_about = f.about["v2"].clone();
    v2_about["model"] = "UNetMotionModel".into();
    let v2 = unet(&device, &v2_about, MotionNorm::Frame);
    let mut v1_about = f.about["v1"].clone();
    v1_about["model"] = "UNetMotionModel".into();
    let v1 = unet(&device, &v1_about, MotionNorm::Frame);
    let rows = |name: &str| f.rows(&device, name);
    let cases = [
        ("frame", &frame, x.clone(), &context, 4, Motion::Auto),
        ("video", &video, x.clone(), &context, 4, Motion::Auto),
        ("bypass", &frame, x.clone(), &context, 4, Motion::Bypass),
        ("single", &frame, single.clone(), &context, 1, Motion::Auto),
        ("single.unbypassed", &frame, single, &context, 1, Motion::On),
        ("8x16", &frame, rows("8x16.sample")?, &first, 2, Motion::Auto),
        ("8x12", &frame, rows("8x12.sample")?, &first, 2, Motion::Auto),
        ("v2", &v2, x, &context, 4, Motion::Auto),
        ("v1", &v1, rows("v1.sample")?, &first, 24, Motion::Auto),
    ];
    for (name, unet, x, context, frames, motion) in cases {
        let timesteps = &timesteps[..context.tokens().shape()[0]];
        let case = Case { timesteps, frames, motion, changes: &none };
        let output = run(unet, &x, Contexts::same(context), case)?;
        let error = distance_rows(&output, f.get(&format!("{name}.output")));
        assert!(error <= LIMIT, "{name} off by {error:e}");
    }
    Ok(())
}

#[test]
fn loras_act_the_same_attached_and_merged() -> Result<()> {
    let (device, f) = (device(), Fixture::read("unet"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let (timesteps, x) = (f.get("timestep").data.clone(), f.rows(&device, "sample")?);
    let lora = |targets: Targets| {
        let modules: Vec<_> = targets.layers(&unet)?.into_iter().map(|l| l.name()).collect();
        f.lora(&device, "", &modules)
    };
    let (spatial, temporal) = (lora(Targets::spatial())?, lora(Targets::temporal())?);
    for (name, parts) in [
        ("spatial_0.7", vec![(&spatial, 0.7)]),
        ("spatial_1.3", vec![(&spatial, 1.3)]),
        ("temporal_0.7", vec![(&temporal, 0.7)]),
        ("temporal_1.3", vec![(&temporal, 1.3)]),
        ("spatial_0.7_temporal_1.3", vec![(&spatial, 0.7), (&temporal, 1.3)]),
    ] {
        let want = f.get(&format!("lora.{name}.output"));
        let (mut attached, mut merged) = (Changes::none(), Changes::none());
        for (lora, scale) in parts {
            lora.attach(&mut Tape::off(), &mut attached, scale, None);
            lora.merge(&unet, &mut merged, scale)?;
        }
        for (way, changes) in [("attached", &attached), ("merged", &merged)] {
            let case = Case { timesteps: &timesteps, frames: 4, motion: Motion::Auto, changes };
            let error = distance_rows(&run(&unet, &x, Contexts::same(&context), case)?, want);
            assert!(error <= LIMIT, "{name} {way} off by {error:e}");
        }
    }
    Ok(())
}

#[test]
fn a_domain_adapter_is_read_and_merged() -> Result<()> {
    let (device, f) = (device(), Fixture::read("unet"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let context = Context::new(f.tensor(&device, "context")?);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/domain_adapter.safetensors");
    let mut changes = Changes::none();
    LoraFile::read(&path)?.into_lora(&unet, &path)?.merge(&unet, &mut changes, 0.8)?;
    let timesteps = &f.get("timestep").data[..];
    let case = Case { timesteps, frames: 4, motion: Motion::Auto, changes: &changes };
    let output = run(&unet, &f.rows(&device, "sample")?, Contexts::same(&context), case)?;
    let error = distance_rows(&output, f.get("domain_adapter_0.8.output"));
    assert!(error <= LIMIT, "off by {error:e}");
    Ok(())
}

#[test]
fn golden_values_and_prompt_injection() -> Result<()> {
    let (device, f) = (device(), Fixture::read("golden"));
    let context = Context::new(f.tensor(&device, "context")?);
    let other = Context::new(f.tensor(&device, "context_2")?);
    let (x, none) = (f.rows(&device, "sample")?, Changes::none());
    let case = |frames, motion| Case { timesteps: &[500.0], frames, motion, changes: &none };
    for (mode, norm) in [("frame", MotionNorm::Frame), ("video", MotionNorm::Video)] {
        let unet = unet(&device, &f.about, norm);
        let base = run(&unet, &x, Contexts::same(&context), case(3, Motion::Auto))?;
        let error = distance_rows(&base, f.get(&format!("{mode}.output")));
        assert!(error <= LIMIT, "{mode} off by {error:e}");
        let mut sets: Vec<Vec<usize>> = (0..9).map(|i| vec![i]).collect();
        sets.extend([vec![2, 6], (0..9).collect()]);
        for blocks in sets {
            let name = match blocks.len() {
                9 => "all".to_string(),
                _ => blocks.iter().map(usize::to_string).collect::<Vec<_>>().join("_"),
            };
            let contexts = Contexts::same(&context).inject(&blocks, &other);
            let output = run(&unet, &x, contexts, case(3, Motion::Auto))?;
            let error = distance_rows(&output, f.get(&format!("{mode}.inject.{name}.output")));
            assert!(error <= LIMIT, "{mode}, other text in {name}: off by {error:e}");
            if name == "3" || name == "5" {
                assert!(output.to_vec() == base.to_vec(), "block {name} has no cross-attention");
            }
        }
        let injected = Contexts::same(&context).inject(&[0, 1, 2, 3, 4, 5, 6, 7, 8], &other);
        let everywhere = run(&unet, &x, injected, case(3, Motion::Auto))?;
        let plain = run(&unet, &x, Contexts::same(&other), case(3, Motion::Auto))?;
        assert!(everywhere.to_vec() == plain.to_vec(), "injection in every block is the other prompt");
        if norm == MotionNorm::Frame {
            let bypassed = run(&unet, &x, Contexts::same(&context), case(3, Motion::Bypass))?;
            assert!(distance_rows(&bypassed, f.get("bypass.output")) <= LIMIT);
            for i in 0..3 {
                let one = run(&unet, &x.narrow(i, 1)?, Contexts::same(&context), case(1, Motion::Auto))?;
                assert!(distance_rows(&one, f.get(&format!("single.{i}.output"))) <= LIMIT, "frame {i}");
                let together = bypassed.narrow(i, 1)?.to_vec();
                let apart = one.to_vec().iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart <= 3e-6, "frame {i} alone differs by {apart:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let (device, f) = (device(), Fixture::read("unet"));
    let unet = unet(&device, &f.about, MotionNorm::Frame);
    let (none, x) = (Changes::none(), f.rows(&device, "sample")?);
    let context = Context::new(f.tensor(&device, "context")?);
    let narrow = Context::new(Tensor::zeros(&device, [2, 77, 40]));
    let long = Tensor::zeros(&device, [33, 8, 8, 4]);
    let one = Context::new(Tensor::zeros(&device, [1, 77, 48]));
    let case = |timesteps, frames| Case { timesteps, frames, motion: Motion::Auto, changes: &none };
    assert!(run(&unet, &x, Contexts::same(&context), case(&[1.0, 1.0], 3)).is_err(), "frames");
    assert!(run(&unet, &x, Contexts::same(&context), case(&[1.0], 8)).is_err(), "prompts");
    assert!(run(&unet, &x, Contexts::same(&narrow), case(&[1.0, 1.0], 4)).is_err(), "text width");
    let error = run(&unet, &long, Contexts::same(&one), case(&[1.0], 33)).expect_err("33 frames are too many");
    assert!(error.to_string().contains("33 frames"), "{error}");
    Ok(())
}

#[test]
fn parameter_counts_are_exact() -> Result<()> {
    use customttt::model::config::{MotionConfig, UNetConfig};
    use customttt::model::lora::{Kind, Part};
    use customttt::nn::{Params, Recorder};
    let (device, recorder) = (device(), Recorder::new());
    let params = Params::new(&recorder, &device, None);
    let motion = MotionConfig { use_motion_mid_block: false, ..MotionConfig::default() };
    let unet = UNet::new(&params, &UNetConfig::default(), Some((&params, &motion)))?;
    let total: usize = recorder.names().iter().map(|(_, shape)| shape.count()).sum();
    assert_eq!(total, 859_520_964 + 417_137_600);
    let count = |kind, blocks: Option<&[usize]>| Targets::new(kind, blocks).count(&unet, 32);
    assert_eq!(count(Kind::Spatial, Some(&[2, 6]))?, 5_980_160);
    assert_eq!(count(Kind::Temporal, Some(&[2, 5]))?, 6_144_000);
    assert_eq!(Targets::spatial().count(&unet, 32)? + Targets::temporal().count(&unet, 32)?, 12_124_160);
    assert_eq!(count(Kind::Spatial, None)? + count(Kind::Temporal, None)?, 28_864_512);
    for (spatial, temporal, want) in
        [([0, 1], [1, 7], 4_988_928), ([2, 6], [1, 7], 9_052_160), ([0, 1], [2, 5], 8_060_928)]
    {
        assert_eq!(count(Kind::Spatial, Some(&spatial))? + count(Kind::Temporal, Some(&temporal))?, want);
    }
    let parts = vec![Part::Attn1, Part::Attn2, Part::FeedForward, Part::Projection];
    let director =
        Targets { kind: Kind::Spatial, blocks: None, parts }.count(&unet, 32)? + count(Kind::Temporal, None)?;
    assert_eq!((director as f64 / 1e4).round() / 1e2, 30.46, "DiffDirector's targets: {director}");
    let layers = |t: Targets| Ok::<_, customttt::Error>(t.layers(&unet)?.len());
    assert_eq!(layers(Targets::spatial())? + layers(Targets::temporal())?, 100);
    assert!(count(Kind::Temporal, Some(&[4])).is_err() && count(Kind::Spatial, Some(&[3])).is_err());
    Ok(())
}

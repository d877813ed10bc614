//! The program against PyTorch's fixtures, through the files that both sides read: weights by the rule, draws, dumps.

use customttt::Device;
use customttt::model::config::{MotionConfig, UNetConfig};
use customttt::model::unet::UNet;
use customttt::nn::{Fetched, ParamSource, Params, Recorder, RuleWeights};

use super::*;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))
}

/// |got - want| / |want|.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = sum(&mut got.iter().zip(want).map(|(&g, &w)| f64::from(g) - f64::from(w)));
    let norm = sum(&mut want.iter().map(|&w| f64::from(w)));
    assert!(error.is_finite() && norm > 0.0);
    (error / norm).sqrt()
}

/// A model folder and motion modules whose UNet has the rule's weights, as the fixtures' has. The image UNet alone has
/// fewer parameters, and hence others.
fn rule_weights(video: bool) -> [String; 2] {
    static MADE: [OnceLock<[String; 2]>; 2] = [OnceLock::new(), OnceLock::new()];
    let made = MADE[usize::from(video)].get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if video { "cli-rule-video" } else { "cli-rule-image" });
        let [base, motion] = ["base/unet", "motion"].map(|part| root.join(part));
        let from = |part: &str| weights().join(part).join("config.json");
        for (folder, config) in [(&base, from("base/unet")), (&motion, from("motion"))] {
            fs::create_dir_all(folder).unwrap();
            fs::copy(config, folder.join("config.json")).unwrap();
        }
        let config: UNetConfig = serde_json::from_str(&fs::read_to_string(from("base/unet")).unwrap()).unwrap();
        let modules: MotionConfig = serde_json::from_str(&fs::read_to_string(from("motion")).unwrap()).unwrap();
        let (recorder, device) = (Recorder::new(), Device::cpu(Some(1)).unwrap());
        let params = Params::new(&recorder, &device, None);
        UNet::new(&params, &config, video.then_some((&params, &modules))).unwrap();
        let names = recorder.names();
        let rule = RuleWeights::new(&names, 1.0);
        let mut files = [TensorWriter::new(), TensorWriter::new()];
        for (name, shape) in &names {
            let Fetched::Data(data) = rule.fetch(name, *shape).unwrap() else { panic!("the rule has numbers") };
            files[usize::from(name.contains("motion_modules."))].floats(name, *shape, data.to_f32().into_owned());
        }
        let [unet, motion_file] = files;
        unet.write(base.join("diffusion_pytorch_model.safetensors")).unwrap();
        if video {
            motion_file.write(motion.join("diffusion_pytorch_model.safetensors")).unwrap();
        }
        [root.join("base"), motion].map(|p| p.to_string_lossy().into_owned())
    });
    made.clone()
}

/// The LoRA keys of a file that start with `prefix`.
fn lora_keys(path: &str, prefix: &str) -> Vec<String> {
    let file = NamedTensors::open(path).unwrap();
    let keys = file.names().filter_map(|n| n.strip_prefix(prefix)).filter(|n| n.starts_with("unet.")).map(String::from);
    keys.collect()
}

fn same_losses(dump: &str, fixture: &str, steps: usize) {
    let (shape, losses) = read(dump, "loss");
    let expected = &read(fixture, "loss").1[..losses.len()];
    assert_eq!(shape[0], steps);
    for (got, want) in losses.iter().zip(expected) {
        assert!((got - want).abs() <= 1e-5 * want.abs(), "loss {got} instead of {want}");
    }
}

/// LoRA of which hardly an element differs by more than half a step: a gradient near zero may change its sign.
fn same_lora(lora: &str, fixture: &str, lr: f32) {
    let (mut all, mut off) = (0, 0);
    for key in lora_keys(lora, "") {
        let (got, want) = (read(lora, &key).1, read(fixture, &format!("final.{key}")).1);
        all += got.len();
        off += got.iter().zip(&want).filter(|(g, w)| (*g - *w).abs() > lr / 2.0).count();
    }
    assert!(all > 10_000, "the LoRA should have been compared, not {all} numbers");
    assert!(off * 200 <= all, "{off} of {all} elements differ by more than half a step");
}

#[test]
fn training_follows_the_fixtures() {
    let dir = Dir::new();
    let ([base, _], [video_base, motion]) = (rule_weights(false), rule_weights(true));
    let (lora, dump) = (dir.path("lora.safetensors"), dir.path("dump.safetensors"));
    let outs = ["--dropout", "0", "--lora-out", &lora, "--dump", &dump];
    let draws = fixture("trajectory_spatial");
    succeed(&[&["train", "spatial", "--base", &base, "--draws", &draws][..], &outs].concat());
    same_losses(&dump, &draws, 20);
    same_lora(&lora, &draws, 1e-5);
    let draws = fixture("trajectory_temporal");
    let models = ["--base", &video_base, "--motion-module", &motion];
    succeed(&[&["train", "temporal", "--draws", &draws][..], &models, &outs].concat());
    same_losses(&dump, &draws, 20);
    same_lora(&lora, &draws, 5e-5);
}

#[test]
fn test_time_training_follows_the_fixture() {
    let dir = Dir::new();
    let [base, motion] = rule_weights(true);
    let [spatial, temporal, dump] = ["spatial", "temporal", "dump"].map(|n| dir.path(&format!("{n}.safetensors")));
    let draws = fixture("trajectory_ttt");
    let words = ["ttt", "--base", &base, "--motion-module", &motion, "--draws", &draws, "--dropout", "0"];
    let outs = ["--spatial-out", &spatial, "--temporal-out", &temporal, "--dump", &dump, "--steps", "4"];
    succeed(&[&words[..], &outs].concat());
    same_losses(&dump, &draws, 4);
    assert_eq!([&spatial, &temporal].map(|lora| lora_keys(lora, "").len()), [100, 100]);
}

#[test]
fn dumped_gradients_are_the_fixtures() {
    let dir = Dir::new();
    let [base, motion] = rule_weights(true);
    let dump = dir.path("dump.safetensors");
    let outs = ["--dropout", "0", "--dump", &dump, "--dump-grads", "0"];
    let words = |stage: &[&str], draws: &str, more: &[&str]| {
        let models = ["--base", base.as_str(), "--motion-module", &motion, "--draws", draws, "--steps", "1"];
        let all = [stage, &models, &outs, more].concat();
        all.iter().map(|w| w.to_string()).collect::<Vec<_>>()
    };
    for (stage, name, more) in [
        (&["train", "temporal"][..], "grads_temporal_plain", &["--loss", "plain"][..]),
        (&["train", "temporal"], "grads_temporal_debiased", &[]),
        (&["ttt"], "grads_ttt", &[]),
    ] {
        let draws = fixture(name);
        let all = words(stage, &draws, more);
        succeed(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let keys = lora_keys(&draws, "grad.");
        assert_eq!(keys, lora_keys(&dump, "grad."), "{name}");
        for key in keys {
            let key = format!("grad.{key}");
            let error = distance(&read(&dump, &key).1, &read(&draws, &key).1);
            assert!(error <= 1e-4, "{name} {key}: off by {error:e}");
        }
    }
}

#[test]
fn sampling_ends_at_the_fixtures_latents() {
    let dir = Dir::new();
    let [base, motion] = rule_weights(true);
    let (draws, latents) = (fixture("ddim"), dir.path("latents.safetensors"));
    for steps in ["5", "25"] {
        let words = ["sample", "--base", &base, "--motion-module", &motion, "--draws", &draws, "--steps", steps];
        succeed(&[&words[..], &["--cfg", "9", "--save-latents", &latents]].concat());
        let (shape, got) = read(&latents, "latents");
        assert_eq!(shape, [1, 4, 4, 8, 8]);
        let error = distance(&got, &read(&draws, &format!("n{steps}.final")).1);
        assert!(error <= 1e-4, "{steps} steps: off by {error:e}");
    }
}

#[test]
fn modules_give_the_fixtures_outputs() {
    let dir = Dir::new();
    let ([image_base, _], [base, motion]) = (rule_weights(false), rule_weights(true));
    let (input, out) = (fixture("unet"), dir.path("out.safetensors"));
    let check = |expected: &str, name: &str, limit: f64| {
        let error = distance(&read(&out, "output").1, &read(expected, name).1);
        assert!(error <= limit, "{name}: off by {error:e}");
    };
    let picture = fixture("unet2d");
    succeed(&["forward", "unet2d", "--base", &image_base, "--in", &picture, "--out", &out]);
    check(&picture, "output", 1e-5);
    let [spatial, temporal] = ["spatial", "temporal"].map(|kind| {
        let path = dir.path(&format!("{kind}.safetensors"));
        let keys = lora_keys(&input, "").into_iter().filter(|k| k.contains("motion_modules.") == (kind == "temporal"));
        let mut file = TensorWriter::new();
        for key in keys {
            let (shape, numbers) = read(&input, &key);
            file.floats(key, &shape[..], numbers);
        }
        file.write(&path).unwrap();
        path
    });
    let words = ["forward", "unet", "--base", &base, "--motion-module", &motion, "--in", &input, "--out", &out];
    let (half, more) = (format!("{spatial}:0.7"), format!("{temporal}:1.3"));
    let adapter = fixture("domain_adapter") + ":0.8";
    for (name, flags) in [
        ("frame.output", &[][..]),
        ("video.output", &["--motion-norm", "video"]),
        ("bypass.output", &["--bypass-motion"]),
        ("lora.spatial_0.7.output", &["--lora", &half]),
        ("lora.spatial_0.7_temporal_1.3.output", &["--lora", &half, "--lora", &more]),
        ("domain_adapter_0.8.output", &["--domain-adapter", &adapter]),
    ] {
        succeed(&[&words[..], flags].concat());
        check(&input, name, 1e-5);
    }
}

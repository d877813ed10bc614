//! Jobs from end to end on the smallest weights: what is written, stopping and going on, replayed draws.

use std::process::Child;
use std::time::{Duration, Instant};

use super::*;

/// Sizes small enough for a test: two frames of 64x64.
const SMALL: [&str; 6] = ["--frames", "2", "--width", "64", "--height", "64"];
const STEPS: [&str; 14] = [
    "--spatial-steps",
    "12",
    "--temporal-steps",
    "6",
    "--ttt-steps",
    "2",
    "--steps",
    "2",
    "--ref-steps",
    "1",
    "--rank",
    "2",
    "--save-every",
    "5",
];

fn whole(dir: &Dir, name: &str, more: &[&str]) -> Vec<String> {
    let (subject, clip) = (dir.pictures("subject", 2), dir.clip("clip", 3));
    let (base, motion, out) = (base(), motion(), dir.path(name));
    let words = ["run", "--base", &base, "--motion-module", &motion, "--subject", &subject, "--motion", &clip];
    let prompts = ["--subject-name", "bear", "--motion-prompt", "a man is dancing", "--prompt", "a bear is dancing"];
    let all = [&words[..], &prompts, &SMALL, &STEPS, &["-o", &out], more].concat();
    all.iter().map(|w| w.to_string()).collect()
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

const LORAS: [&str; 4] = ["spatial", "temporal", "ttt_spatial", "ttt_temporal"];

/// The files of a run that must not depend on how it was run.
fn same_results(a: &str, b: &str) {
    for lora in LORAS {
        same_file(format!("{a}/loras/{lora}.safetensors"), format!("{b}/loras/{lora}.safetensors"));
    }
    for sample in ["before_ttt", "after_ttt"] {
        for file in ["latents.safetensors", "frame_0001.png", "video.gif", "video.mp4", "sheet.png"] {
            same_file(format!("{a}/samples/{sample}/{file}"), format!("{b}/samples/{sample}/{file}"));
        }
    }
}

#[test]
fn a_run_leaves_everything_in_its_folder() {
    let dir = Dir::new();
    let output = run(&words(&whole(&dir, "out", &["--json", "--seed", "7"])));
    assert!(output.status.success(), "{}", err(&output));
    let result: Json = serde_json::from_str(&out(&output)).expect("stdout should be one JSON object");
    assert_eq!(result["seed"], 7);
    assert!(result["videos"]["after_ttt"]["mp4"].as_str().unwrap().ends_with("samples/after_ttt/video.mp4"));
    assert!(err(&output).starts_with("run folder: "), "{}", err(&output));
    assert!(err(&output).contains("seed: 7"));
    let run = dir.path("out");
    for lora in LORAS {
        assert!(fs::metadata(format!("{run}/loras/{lora}.safetensors")).unwrap().len() > 1000, "{lora}");
    }
    for file in
        ["config.toml", "run.json", "events.jsonl", "DONE", "data/subject/frame_0001.png", "data/motion/frame_0001.png"]
    {
        assert!(Path::new(&run).join(file).exists(), "{file} should be there");
    }
    for file in [
        "video.mp4",
        "video.gif",
        "sheet.png",
        "frame_0000.png",
        "frame_0001.png",
        "latents.safetensors",
        "params.json",
    ] {
        for sample in ["before_ttt", "after_ttt"] {
            assert!(Path::new(&run).join("samples").join(sample).join(file).exists(), "{sample}/{file}");
        }
    }
    assert!(!Path::new(&run).join("checkpoints/spatial.safetensors").exists(), "finished stages need no state");
    let record: Json = serde_json::from_str(&fs::read_to_string(format!("{run}/run.json")).unwrap()).unwrap();
    assert_eq!((&record["command"], &record["seed"]), (&"run".into(), &7.into()));
    let hashes = record["inputs_sha256"].as_object().unwrap();
    assert!(hashes.keys().any(|k| k.ends_with("subject/0.png")), "{hashes:?}");
    assert!(hashes.values().all(|h| h.as_str().unwrap().len() == 64));
    let config = fs::read_to_string(format!("{run}/config.toml")).unwrap();
    assert!(config.contains("steps = 12") && config.contains("rank = 2"), "{config}");
    let events = fs::read_to_string(format!("{run}/events.jsonl")).unwrap();
    let events: Vec<Json> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let count = |kind: &str, stage: &str| events.iter().filter(|e| e["type"] == kind && e["stage"] == stage).count();
    assert_eq!((count("step", "spatial"), count("step", "temporal"), count("step", "ttt")), (12, 6, 2));
    assert_eq!((count("checkpoint", "spatial"), count("checkpoint", "temporal")), (2, 1));
    assert!(events.iter().filter(|e| e["type"] == "step" && e["stage"] == "ttt").all(|e| e["losses"][1].is_number()));
    assert_eq!(events.last().unwrap()["type"], "run.end");

    let again = super::run(&words(&whole(&dir, "out", &[])));
    assert_eq!(again.status.code(), Some(9), "{}", err(&again));
    assert!(err(&again).contains("holds a run already"), "{}", err(&again));

    // The saved configuration is a config file; and threads do not change a bit.
    succeed(&["run", "--config", &format!("{run}/config.toml"), "-o", &dir.path("same"), "--threads", "1"]);
    same_results(&run, &dir.path("same"));
}

/// Starts a job and waits until its events say that `stage` has done `steps` steps.
#[cfg(unix)]
fn start_until(all: &[String], run: &str, stage: &str, steps: u64) -> Child {
    let mut child = program(&words(all)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        let events = fs::read_to_string(format!("{run}/events.jsonl")).unwrap_or_default();
        let done = events.lines().filter_map(|l| serde_json::from_str::<Json>(l).ok());
        if done.filter(|e| e["type"] == "step" && e["stage"] == stage).any(|e| e["step"].as_u64() >= Some(steps)) {
            return child;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the job ended too early with {status}: {}", err(&child.wait_with_output().unwrap()));
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "the job should get to {stage} step {steps}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let dir = Dir::new();
    // Long enough to be stopped on the way.
    let long = ["--spatial-steps", "40", "--temporal-steps", "20", "--ttt-steps", "4", "--steps", "12"];
    let (whole_run, parts) = (dir.path("whole"), dir.path("parts"));
    let strip = |all: Vec<String>| {
        let at = all.iter().position(|w| w == "--spatial-steps").unwrap();
        [&all[..at], &all[at + 8..]].concat()
    };
    succeed(&words(&strip(whole(&dir, "whole", &[]))).into_iter().chain(long).collect::<Vec<_>>());
    let first: Vec<String> = strip(whole(&dir, "parts", &[])).into_iter().chain(long.map(String::from)).collect();
    let child = start_until(&first, &parts, "spatial", 3);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", err(&output));
    assert!(err(&output).contains("customttt resume"), "{}", err(&output));
    assert!(Path::new(&parts).join("checkpoints/spatial.safetensors").exists());
    assert!(!Path::new(&parts).join("loras/spatial.safetensors").exists());
    for (stage, steps, name) in [("temporal", 2, "-TERM"), ("before_ttt", 2, "-INT"), ("ttt", 1, "-INT")] {
        let resume = ["resume", &parts].map(String::from);
        let child = start_until(&resume, &parts, stage, steps);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{stage}: {}", err(&output));
        assert!(Path::new(&parts).join(format!("checkpoints/{stage}.safetensors")).exists(), "{stage}");
    }
    let result = json(&["resume", &parts, "--json"]);
    assert!(result["run"].as_str().unwrap().ends_with("parts"));
    same_results(&whole_run, &parts);
    // A finished run has nothing left to do.
    json(&["resume", &parts, "--json"]);
    fail(&["resume", &dir.path("nowhere")], 9, &["nowhere"]);
}

#[cfg(unix)]
#[test]
fn a_second_user_of_a_run_folder_is_refused_while_the_first_works() {
    let dir = Dir::new();
    let all = whole(&dir, "out", &[]);
    let child = start_until(&all, &dir.path("out"), "spatial", 1);
    let second = run(&["resume", &dir.path("out")]);
    assert_eq!(second.status.code(), Some(9), "{}", err(&second));
    assert!(err(&second).contains(&format!("in use by process {}", child.id())), "{}", err(&second));
    signal(&child, "-KILL");
    child.wait_with_output().unwrap();
    succeed(&["resume", &dir.path("out")]);
}

#[test]
fn stages_one_by_one_are_the_run() {
    let dir = Dir::new();
    succeed(&words(&whole(&dir, "out", &["--before-ttt", "off"])));
    let [spatial, temporal, ttt_spatial, ttt_temporal] = LORAS.map(|l| dir.path(&format!("{l}.safetensors")));
    let models = ["--base", &base(), "--motion-module", &motion()];
    let (size, rank) = (["--width", "64", "--height", "64"], ["--rank", "2"]);
    let subject = ["--subject", &dir.path("subject"), "--subject-name", "bear"];
    let clip = ["--motion", &dir.path("clip"), "--motion-prompt", "a man is dancing", "--frames", "2"];
    let steps = |n| ["--steps", n];
    let train = |more: &[&[&str]]| succeed(&more.concat());
    train(&[&["train", "spatial"], &models[..2], &size, &rank, &subject, &steps("12"), &["--lora-out", &spatial]]);
    train(&[&["train", "temporal"], &models, &size, &rank, &clip, &steps("6"), &["--lora-out", &temporal]]);
    let pair = ["--spatial-lora", &spatial, "--temporal-lora", &temporal];
    let names = ["--subject-name", "bear", "--motion-prompt", "a man is dancing", "--ref-steps", "1", "--frames", "2"];
    let outs = ["--spatial-out", &ttt_spatial, "--temporal-out", &ttt_temporal];
    train(&[&["ttt"], &models, &size, &names, &pair, &steps("2"), &outs]);
    for (lora, path) in LORAS.iter().zip([&spatial, &temporal, &ttt_spatial, &ttt_temporal]) {
        same_file(path, dir.path(&format!("out/loras/{lora}.safetensors")));
    }
    let latents = dir.path("latents.safetensors");
    let loras = ["--lora", &ttt_spatial, "--lora", &ttt_temporal, "--frames", "2"];
    let prompt = ["--prompt", "a bear is dancing", "--save-latents", &latents];
    let printed = train(&[&["sample"], &models, &size, &loras, &prompt, &steps("2")]);
    assert_eq!(printed.trim(), latents);
    same_file(&latents, dir.path("out/samples/after_ttt/latents.safetensors"));
    assert!(!Path::new(&dir.path("out/samples/before_ttt")).exists(), "it was not asked for");
}

/// Draws for the spatial stage with the file's own prompt and latents.
fn spatial_draws(path: &str) {
    let steps = 3;
    write(
        path,
        &[
            ("latents", &[2, 4, 8, 8], numbers(2 * 256, 1)),
            ("context", &[1, 77, 48], numbers(77 * 48, 2)),
            ("image_index", &[steps], vec![0.0, 1.0, 1.0]),
            ("timestep", &[steps], vec![10.0, 500.0, 999.0]),
            ("noise", &[steps, 4, 8, 8], numbers(steps * 256, 3)),
        ],
    );
}

#[test]
fn replayed_draws_need_no_pictures_and_give_the_same_bits() {
    let dir = Dir::new();
    let draws = dir.path("draws.safetensors");
    spatial_draws(&draws);
    let train = |name: &str, more: &[&str]| {
        let (lora, dump) = (dir.path(&format!("{name}.lora")), dir.path(&format!("{name}.dump")));
        let words = ["train", "spatial", "--base", &base(), "--draws", &draws, "--rank", "2", "--dropout", "0"];
        succeed(&[&words[..], &["--lora-out", &lora, "--dump", &dump, "--dump-grads", "1"], more].concat());
        (lora, dump)
    };
    let (lora, dump) = train("a", &["--threads", "1"]);
    let (again, dump_again) = train("b", &["--threads", "2"]);
    same_file(&lora, &again);
    same_file(&dump, &dump_again);
    // As many steps as the file has draws for.
    assert_eq!(read(&dump, "loss").0, [3]);
    let file = NamedTensors::open(&dump).unwrap();
    let lora_file = NamedTensors::open(&lora).unwrap();
    let gradients: Vec<String> = file.names().filter_map(|n| n.strip_prefix("grad.")).map(String::from).collect();
    assert_eq!(gradients, lora_file.names().map(String::from).collect::<Vec<_>>(), "every tensor has its gradient");
    gradients.iter().for_each(|g| assert_eq!(file.shape(&format!("grad.{g}")), lora_file.shape(g)));
    // From where it got to: one more step of the same file continues the loss curve.
    let (_, dump_two) = train("c", &["--steps", "2"]);
    assert_eq!(read(&dump_two, "loss").1, read(&dump, "loss").1[..2]);
    // Another start is another run.
    let (other, _) = train("d", &["--init-lora", &lora]);
    assert!(fs::read(other).unwrap() != fs::read(&lora).unwrap());
}

#[test]
fn every_choice_of_test_time_training_changes_the_result() {
    let dir = Dir::new();
    let draws = dir.path("draws.safetensors");
    let steps = 2;
    let video = |seed| numbers(steps * 4 * 2 * 64, seed);
    let shape: &[usize] = &[steps, 4, 2, 8, 8];
    write(
        &draws,
        &[
            ("context_appearance", &[1, 77, 48], numbers(77 * 48, 1)),
            ("context_motion", &[steps, 77, 48], numbers(steps * 77 * 48, 2)),
            ("context_student", &[1, 77, 48], numbers(77 * 48, 3)),
            ("context_uncond", &[1, 77, 48], numbers(77 * 48, 4)),
            ("start_motion", shape, video(5)),
            ("noise_motion", shape, video(6)),
            ("timestep_appearance", &[steps], vec![300.0, 40.0]),
            ("timestep_motion", &[steps], vec![700.0, 10.0]),
        ],
    );
    let models = ["--base", &base(), "--motion-module", &motion()];
    let lora = |kind: &str| {
        let path = dir.path(&format!("{kind}.safetensors"));
        let sizes = ["--width", "64", "--height", "64", "--frames", "2", "--rank", "2", "--steps", "2"];
        let sizes = if kind == "spatial" { [&sizes[..4], &sizes[6..]].concat() } else { sizes.to_vec() };
        let data = match kind {
            "spatial" => vec!["--subject".into(), dir.pictures("subject", 2), "--subject-name".into(), "bear".into()],
            _ => vec!["--motion".into(), dir.clip("clip", 2), "--motion-prompt".into(), "a man is dancing".into()],
        };
        let models = if kind == "spatial" { &models[..2] } else { &models[..] };
        succeed(&[&["train", kind], models, &sizes, &words(&data), &["--lora-out", &path]].concat());
        path
    };
    let (spatial, temporal) = (lora("spatial"), lora("temporal"));
    let mut seen: Vec<(Vec<&str>, Vec<f32>)> = Vec::new();
    for choice in [
        &[][..],
        &["--ref-steps", "2"],
        &["--ref-cfg", "1"],
        &["--reference", "partial", "--ref-steps", "2"],
        &["--references", "once"],
        &["--appearance-frames", "one"],
        &["--student-motion", "off"],
        &["--loss", "debiased"],
        &["--dropout", "0"],
        &["--lr", "1e-3"],
        &["--motion-norm", "video"],
        &["--seed", "1"],
    ] {
        let dump = dir.path("dump.safetensors");
        let pair = ["--spatial-lora", &spatial, "--temporal-lora", &temporal, "--draws", &draws, "--dump", &dump];
        let plain: &[&str] = if choice.contains(&"--ref-steps") { &[] } else { &["--ref-steps", "1"] };
        succeed(&[&["ttt"], &models[..], &pair, plain, choice].concat());
        let (shape, losses) = read(&dump, "loss");
        assert_eq!(shape, [steps, 2]);
        for (other, theirs) in &seen {
            assert!(*theirs != losses, "{choice:?} should differ from {other:?}");
        }
        seen.push((choice.to_vec(), losses));
    }
    let wrong = ["--spatial-lora", &temporal, "--temporal-lora", &spatial, "--dump", &dir.path("dump.safetensors")];
    fail(&[&["ttt"], &models[..], &wrong, &["--draws", &draws]].concat(), 5, &["is not a spatial LoRA"]);
}

#[test]
fn the_throw_away_lora_is_thrown_away() {
    let dir = Dir::new();
    let (clip, a, b) = (dir.clip("clip", 2), dir.path("a.safetensors"), dir.path("b.safetensors"));
    let models = ["--base", &base(), "--motion-module", &motion(), "--motion", &clip];
    let settings = ["--motion-prompt", "a man is dancing", "--rank", "2", "--steps", "4", "--lr", "1e-3"];
    let size = ["--width", "64", "--height", "64", "--frames", "2", "--set", "spatial.lr=1e-3"];
    let all = [&["train", "temporal"], &models[..], &settings, &size, &["--lora-out"]].concat();
    succeed(&[&all[..], &[&a]].concat());
    succeed(&[&all[..], &[&b, "--joint-spatial"]].concat());
    let keys = |path: &str| NamedTensors::open(path).unwrap().names().map(String::from).collect::<Vec<_>>();
    assert_eq!(keys(&a), keys(&b));
    assert!(fs::read(a).unwrap() != fs::read(b).unwrap(), "it should have changed what the temporal LoRA learns");
}

#[test]
fn several_prompts_have_a_folder_each() {
    let dir = Dir::new();
    let mut all = whole(&dir, "out", &["--prompt", "on the Mars", "--ttt-scope", "prompt"]);
    all.retain(|w| w != "--json");
    succeed(&words(&all));
    for name in ["01_a-bear-is-dancing", "02_on-the-mars"] {
        assert!(Path::new(&dir.path("out/samples/after_ttt")).join(name).join("video.mp4").exists(), "{name}");
    }
    for lora in ["ttt_spatial_1", "ttt_temporal_2"] {
        assert!(Path::new(&dir.path("out/loras")).join(format!("{lora}.safetensors")).exists(), "{lora}");
    }
}

#[test]
fn the_demo_needs_nothing() {
    let dir = Dir::new();
    let steps =
        ["--spatial-steps", "2", "--temporal-steps", "1", "--ttt-steps", "1", "--steps", "1", "--ref-steps", "1"];
    let small = ["--frames", "2", "--width", "64", "--height", "64"];
    let output = run(&[&["demo"], &steps[..], &small, &["-o", &dir.path("out")]].concat());
    assert!(output.status.success(), "{}", err(&output));
    assert!(err(&output).contains("random"), "it should say that its weights are: {}", err(&output));
    assert!(out(&output).lines().any(|l| l.ends_with("after_ttt/video.mp4")), "{}", out(&output));
}

//! Bad input: a clear line, the right exit status, nothing lost.

use std::fs::{self, File};
use std::path::Path;

use super::*;

#[test]
fn usage_mistakes_exit_with_2() {
    for (words, says) in [
        (&["dance"][..], "unrecognized subcommand"),
        (&["run", "--stpes", "3"], "--steps"),
        (&["run", "--steps", "many"], "a whole number"),
        (&["run", "--preset", "slow"], "possible values: paper, fast"),
        (&["forward", "unet4d", "--out", "x"], "possible values: unet2d"),
        (&["train"], "Usage"),
    ] {
        fail(words, 2, &[says]);
    }
    for later in ["eval", "ablate", "analyze", "plan", "check", "bench"] {
        fail(&[later], 2, &["unrecognized subcommand"]);
    }
}

#[test]
fn help_version_info_and_completions_go_to_stdout() {
    assert!(succeed(&["--help"]).contains("init-weights"));
    assert!(succeed(&["run", "--help"]).contains("--appearance-prompts"));
    assert!(succeed(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    assert!(succeed(&["info"]).contains("rustc"));
    let info = json(&["info", "--json"]);
    assert!(info["cpu"]["cores"].as_u64().unwrap() >= 1);
    assert_eq!(info["versions"]["customttt"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(succeed(&["completions", shell]).contains("init-weights"));
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = program(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, err(&output));
    assert_eq!(err(&output), "");
}

#[test]
fn config_mistakes_exit_with_3_and_name_the_place() {
    let dir = Dir::new();
    let unknown = dir.text("a.toml", "[spatial]\nsteps = 4\nrnak = 8\n");
    fail(&["run", "--config", &unknown], 3, &["line 3, column 1", "unknown key spatial.rnak", "spatial.rank?"]);
    let wrong = dir.text("b.toml", "seed = 1\n\n[data]\nframes = \"lots\"\n");
    fail(&["run", "--config", &wrong], 3, &["line 4, column 10", "data.frames", "whole number", "a string"]);
    let broken = dir.text("c.toml", "[data\n");
    fail(&["run", "--config", &broken], 3, &["line 1, column"]);
    let range = dir.text("d.toml", "[temporal]\nrank = 0\n");
    fail(&["run", "--config", &range], 3, &["temporal.rank", "line 2, column 8", "0 is less than 1"]);
    fail(&["run", "--config", &dir.path("none.toml")], 9, &["none.toml"]);
    fail(&["run", "--set", "spatial.stepz=3"], 3, &["spatial.stepz", "spatial.steps?"]);
    let output = program(&["run"]).env("CUSTOMTTT_TTT__SPETS", "3").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("CUSTOMTTT_TTT__SPETS") && err(&output).contains("ttt.steps?"), "{}", err(&output));
}

#[test]
fn settings_out_of_range_exit_with_3_and_name_the_flag() {
    let base = base();
    let run = |more: &[&'static str]| [&["run", "--base", base.as_str()], more].concat();
    for (words, says) in [
        (run(&["--rank", "0"]), ["--rank", "less than 1"]),
        (run(&["--steps", "0"]), ["--steps", "less than 1"]),
        (run(&["--frames", "33"]), ["--frames", "more than 32"]),
        (run(&["--width", "100"]), ["--width", "96 and 104"]),
        (run(&["--dropout", "1"]), ["--dropout", "[0, 1)"]),
        (run(&["--lr-ttt", "0"]), ["--lr-ttt", "(0, 1]"]),
        (run(&["--betas", "0.9"]), ["--betas", "two numbers"]),
        (run(&["--blocks", "2,9"]), ["--blocks", "block 9"]),
        (run(&["--spatial-blocks", "3"]), ["--spatial-blocks", "0, 1, 2, 4, 6, 7, 8"]),
        (run(&["--domain-adapter", "x:y"]), ["--domain-adapter", "not a scale"]),
        (run(&["--reference", "partial", "--ref-steps", "26"]), ["--ref-steps", "25"]),
        (run(&["--device", "tpu"]), ["--device", "none of auto, cpu"]),
        (run(&[]), ["--subject-name", "missing"]),
        (vec!["run"], ["--base", "init-weights"]),
        (vec!["ttt", "--base", base.as_str()], ["--output", "nothing to write to"]),
        (vec!["train", "spatial", "--base", base.as_str()], ["--lora-out", "nothing to write to"]),
        (vec!["sample", "--base", base.as_str(), "-o", "never"], ["--prompt", "missing"]),
    ] {
        fail(&words, 3, &says);
    }
    let phrase = ["--subject-name", "bear", "--motion-prompt", "a man plays guitar"];
    fail(&[&["run", "--base", &base][..], &phrase].concat(), 3, &["--motion-phrase", "a man plays guitar"]);
    assert!(!Path::new("never").exists(), "a refused job should leave no folder");
}

#[test]
fn a_device_this_build_lacks_exits_with_6_in_one_line() {
    let dir = Dir::new();
    let words = ["sample", "--base", &base(), "--device", "cuda:0", "--prompt", "x", "--save-latents", &dir.path("l")];
    let text = fail(&words, 6, &["no CUDA support"]);
    assert_eq!(text.lines().filter(|l| l.starts_with("error:")).count(), 1);
}

/// `run` with inputs that are all good, and then one that is not.
fn run_with(dir: &Dir, change: &[&str]) -> Output {
    let (subject, clip) = (dir.pictures("subject", 2), dir.clip("clip", 3));
    let (base, motion, out) = (base(), motion(), dir.path("out"));
    let good = [
        ("--base", base.as_str()),
        ("--motion-module", &motion),
        ("--subject", &subject),
        ("--subject-name", "bear"),
        ("--motion", &clip),
        ("--motion-prompt", "a man is dancing"),
        ("--prompt", "a bear is dancing"),
        ("--frames", "2"),
        ("--width", "64"),
        ("--height", "64"),
        ("-o", &out),
    ];
    let mut words = vec!["run"];
    for (flag, value) in good.iter().filter(|(flag, _)| !change.contains(flag)) {
        words.extend([*flag, *value]);
    }
    words.extend(change);
    super::run(&words)
}

fn refused(dir: &Dir, change: &[&str], code: i32, says: &[&str]) {
    let output = run_with(dir, change);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(code), "{change:?}:\n{text}");
    says.iter().for_each(|s| assert!(text.contains(s), "{change:?} should say {s:?}:\n{text}"));
    let _ = fs::remove_dir_all(dir.path("out"));
}

#[test]
fn unusable_inputs_exit_with_4() {
    let dir = Dir::new();
    refused(&dir, &["--subject", &dir.path("nowhere")], 4, &["nowhere", "does not exist", "--subject"]);
    fs::create_dir(dir.path("empty")).unwrap();
    refused(&dir, &["--subject", &dir.path("empty")], 4, &["no pictures"]);
    let corrupt = dir.pictures("corrupt", 1);
    fs::write(Path::new(&corrupt).join("1.jpg"), b"\xff\xd8\xff not a picture").unwrap();
    refused(&dir, &["--subject", &corrupt], 4, &["1.jpg"]);
    refused(&dir, &["--frames", "16"], 4, &["clip", "16"]);
    refused(&dir, &["--frame-start", "2"], 4, &["clip"]);
    let noise = dir.text("noise.mp4", "this is no video");
    refused(&dir, &["--motion", &noise], 4, &["noise.mp4"]);
    let prompts = dir.text("prompts.txt", "\n \n");
    refused(&dir, &["--appearance-prompts", &prompts], 4, &["prompts.txt", "no prompts"]);
}

#[test]
fn unusable_weights_exit_with_5_and_say_what_the_file_is() {
    let dir = Dir::new();
    refused(&dir, &["--base", &dir.path("nowhere")], 5, &["nowhere", "does not exist"]);
    fs::create_dir(dir.path("empty")).unwrap();
    refused(&dir, &["--base", &dir.path("empty")], 5, &["no folder"]);
    let unet = weights().join("base/unet/diffusion_pytorch_model.safetensors");
    refused(&dir, &["--motion-module", &unet.to_string_lossy()], 5, &["not an AnimateDiff motion module"]);
    let whole = fs::read(weights().join("motion/diffusion_pytorch_model.safetensors")).unwrap();
    fs::create_dir(dir.path("cut")).unwrap();
    fs::write(dir.path("cut/diffusion_pytorch_model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    fs::copy(weights().join("motion/config.json"), dir.path("cut/config.json")).unwrap();
    refused(&dir, &["--motion-module", &dir.path("cut")], 5, &["cut"]);
    let lora = dir.path("lora.safetensors");
    let key = |part| format!("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight");
    write(&lora, &[(&key("A"), &[2, 7], numbers(14, 1)), (&key("B"), &[32, 2], numbers(64, 2))]);
    refused(&dir, &["--motion-module", &lora], 5, &["LoRA"]);
    let sample = |lora: &str| {
        let words = ["sample", "--base", &base(), "--motion-module", &motion(), "--prompt", "x", "--frames", "2"];
        let more = ["--width", "64", "--height", "64", "--steps", "1", "--lora", lora, "--save-latents"];
        super::run(&[&words[..], &more, &[&dir.path("latents.safetensors")]].concat())
    };
    let misshapen = sample(&lora);
    assert_eq!(misshapen.status.code(), Some(5), "{}", err(&misshapen));
    assert!(err(&misshapen).contains("[32, 32]"), "{}", err(&misshapen));
    write(&lora, &[("unet.elsewhere.lora_A.weight", &[2, 7], numbers(14, 1))]);
    assert_eq!(sample(&lora).status.code(), Some(5));
    assert_eq!(sample(&dir.path("none.safetensors")).status.code(), Some(5));
}

#[test]
fn an_output_that_cannot_be_written_exits_with_9() {
    let dir = Dir::new();
    let file = dir.text("file", "");
    refused(&dir, &["-o", &format!("{file}/out")], 9, &["run folder"]);
    let words = ["forward", "text", "--base", &base(), "--prompt", "x", "--out"];
    fail(&[&words[..], &[&format!("{file}/x.safetensors")]].concat(), 9, &["file"]);
}

#[test]
fn a_run_folder_in_use_exits_with_9_and_names_its_user() {
    let dir = Dir::new();
    fs::create_dir(dir.path("out")).unwrap();
    let lock = File::create(dir.path("out/.lock")).unwrap();
    lock.lock().unwrap();
    fs::write(dir.path("out/.lock"), "process 4711, started yesterday").unwrap();
    refused(&dir, &[], 9, &["in use by process 4711, started yesterday"]);
}

#[test]
fn numbers_that_are_none_exit_with_8_and_keep_the_last_good_lora() {
    let dir = Dir::new();
    let draws = dir.path("draws.safetensors");
    let mut noise = numbers(3 * 4 * 8 * 8, 2);
    noise[2 * 4 * 8 * 8 + 5] = f32::NAN;
    let latents = numbers(4 * 8 * 8, 1);
    let tensors = [("latents", &[1, 4, 8, 8][..], latents), ("noise", &[3, 4, 8, 8], noise)];
    let context = ("context", &[1, 77, 48][..], numbers(77 * 48, 3));
    write(&draws, &[&tensors[..], &[context]].concat());
    let lora = dir.path("lora.safetensors");
    let words = ["train", "spatial", "--base", &base(), "--draws", &draws, "--rank", "2", "--lora-out", &lora];
    fail(&words, 8, &["non-finite loss at spatial step 2", "first in"]);
    let good = dir.path("good.safetensors");
    let words = ["train", "spatial", "--base", &base(), "--draws", &draws, "--rank", "2", "--lora-out", &good];
    succeed(&[&words[..], &["--steps", "2"]].concat());
    same_file(&lora, &good);
}

#[test]
fn draws_that_do_not_fit_exit_with_4() {
    let dir = Dir::new();
    let draws = dir.path("draws.safetensors");
    let lora = dir.path("lora.safetensors");
    let words = ["train", "spatial", "--base", &base(), "--draws", &draws, "--rank", "2", "--lora-out", &lora];
    let latents = ("latents", &[1, 4, 8, 8][..], numbers(256, 1));
    let context = ("context", &[1, 77, 48][..], numbers(77 * 48, 3));
    write(&draws, &[latents.clone(), context.clone(), ("noise", &[2, 4, 8, 4], numbers(256, 2))]);
    fail(&words, 4, &["noise does not go with the latents"]);
    write(&draws, &[latents.clone(), context.clone(), ("timestep", &[2], vec![3.0, 1000.0])]);
    fail(&words, 4, &["timestep", "0..999"]);
    write(&draws, &[latents, context, ("timestep", &[2], vec![3.0, 7.0])]);
    fail(&[&words[..], &["--steps", "3"]].concat(), 4, &["2 steps", "3 steps"]);
}

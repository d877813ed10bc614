//! `forward` and `init-weights`.

use super::*;

#[test]
fn random_weights_depend_on_the_seed_alone() {
    let dir = Dir::new();
    let made = json(&["init-weights", "--size", "tiny", "--seed", "3", "--json", &dir.path("again")]);
    let unet = "base/unet/diffusion_pytorch_model.safetensors";
    same_file(dir.path("again") + "/" + unet, weights().join(unet));
    assert_eq!(made["seed"], 3);
    assert!(made["motion"].as_str().unwrap().ends_with("motion"));
    succeed(&["init-weights", "--size", "tiny", "--dtype", "f16", &dir.path("half")]);
    let bytes = |path: String| fs::metadata(path).unwrap().len();
    let (full, half) = (bytes(dir.path("again") + "/" + unet), bytes(dir.path("half") + "/" + unet));
    assert!(half * 10 < full * 6, "{half} of {full}");
}

#[test]
fn sizes_can_come_from_a_file() {
    let dir = Dir::new();
    let config = dir.text("v1.toml", "seed = 5\n[motion]\nmotion_max_seq_length = 24\n");
    let made = json(&["init-weights", "--size", "tiny", "--config", &config, "--json", &dir.path("v1")]);
    assert_eq!(made["seed"], 5);
    let text = fs::read_to_string(dir.path("v1/motion/config.json")).unwrap();
    assert!(text.contains("\"motion_max_seq_length\": 24"), "{text}");
    let config = dir.text("bad.toml", "[motion]\nmotion_max_length = 24\n");
    fail(&["init-weights", "--config", &config, &dir.path("bad")], 3, &["motion_max_length", "motion_max_seq_length?"]);
}

#[test]
fn text_gives_ids_and_states_from_either() {
    let dir = Dir::new();
    let (a, b) = (dir.path("a.safetensors"), dir.path("b.safetensors"));
    let words = ["forward", "text", "--base", &base(), "--prompt", "a teddy bear", "--prompt", "", "--out", &a];
    assert_eq!(succeed(&words).trim(), a);
    assert_eq!(read(&a, "input_ids").0, [2, 77]);
    assert_eq!(read(&a, "last_hidden_state").0, [2, 77, 48]);
    succeed(&["forward", "text", "--base", &base(), "--in", &a, "--out", &b]);
    same_file(&a, &b);
    let long = "very ".repeat(90) + "long end";
    let output = run(&["forward", "text", "--base", &base(), "--prompt", &long, "--out", &b]);
    assert!(output.status.success());
    assert!(err(&output).contains("warning") && err(&output).contains("long end"), "{}", err(&output));
}

#[test]
fn a_single_frame_is_a_picture_unless_told_otherwise() {
    let dir = Dir::new();
    let (picture, video) = (dir.path("picture.safetensors"), dir.path("video.safetensors"));
    let (x, t) = (numbers(2 * 4 * 64, 1), vec![500.0, 20.0]);
    let context = || numbers(2 * 77 * 48, 2);
    write(
        &picture,
        &[("sample", &[2, 4, 8, 8], x.clone()), ("timestep", &[2], t.clone()), ("context", &[2, 77, 48], context())],
    );
    write(&video, &[("sample", &[2, 4, 1, 8, 8], x), ("timestep", &[2], t), ("context", &[2, 77, 48], context())]);
    let outputs = ["0", "1", "2", "3"].map(|n| dir.path(&format!("out{n}.safetensors")));
    succeed(&["forward", "unet2d", "--base", &base(), "--in", &picture, "--out", &outputs[0]]);
    let videos = ["forward", "unet", "--base", &base(), "--motion-module", &motion(), "--in", &video, "--out"];
    succeed(&[&videos[..], &[&outputs[1]]].concat());
    succeed(&[&videos[..], &[&outputs[2], "--bypass-motion"]].concat());
    succeed(&[&videos[..], &[&outputs[3], "--no-bypass-single-frame"]].concat());
    let all = outputs.each_ref().map(|path| read(path, "output"));
    assert_eq!((all[0].0.as_slice(), all[1].0.as_slice()), (&[2, 4, 8, 8][..], &[2, 4, 1, 8, 8][..]));
    assert!(all[0].1 == all[1].1 && all[1].1 == all[2].1, "without motion modules a frame is a picture");
    assert!(all[1].1 != all[3].1, "motion modules should act when told to");
    fail(&["forward", "unet", "--base", &base(), "--in", &video, "--out", &outputs[0]], 3, &["--motion-module"]);
    fail(&["forward", "unet2d", "--base", &base(), "--in", &video, "--out", &outputs[0]], 4, &["(B, 4, h, w)"]);
}

#[test]
fn pictures_go_through_the_vae_both_ways_and_through_clip() {
    let dir = Dir::new();
    let [image, latent, coded, decoded] =
        ["image", "latent", "coded", "decoded"].map(|n| dir.path(&format!("{n}.safetensors")));
    write(&image, &[("image", &[1, 3, 32, 16], numbers(3 * 32 * 16, 1))]);
    succeed(&["forward", "vae-encode", "--base", &base(), "--in", &image, "--out", &coded]);
    let (shape, mean) = read(&coded, "mean");
    assert_eq!((shape.as_slice(), read(&coded, "logvar").0.as_slice()), (&[1, 4, 4, 2][..], &[1, 4, 4, 2][..]));
    write(&latent, &[("latent", &[1, 4, 4, 2], mean)]);
    succeed(&["forward", "vae-decode", "--base", &base(), "--in", &latent, "--out", &decoded]);
    assert_eq!(read(&decoded, "image").0, [1, 3, 32, 16]);
    write(&image, &[("image", &[1, 3, 32, 12], numbers(3 * 32 * 12, 1))]);
    fail(&["forward", "vae-encode", "--base", &base(), "--in", &image, "--out", &coded], 4, &["multiples of 8"]);

    let clip = weights().join("clip").to_string_lossy().into_owned();
    let pixels = dir.path("pixels.safetensors");
    let mut ids = vec![49407.0; 77];
    (ids[0], ids[1]) = (49406.0, 320.0);
    write(&pixels, &[("pixel_values", &[1, 3, 32, 32], numbers(3 * 1024, 4)), ("input_ids", &[1, 77], ids)]);
    succeed(&["forward", "clip", "--clip", &clip, "--in", &pixels, "--out", &coded]);
    for name in ["image_embeds", "text_embeds"] {
        let (shape, embeds) = read(&coded, name);
        assert_eq!(shape, [1, 32]);
        let length: f32 = embeds.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{name} has length {length}");
    }
    fail(&["forward", "clip", "--in", &pixels, "--out", &coded], 3, &["--clip"]);
}

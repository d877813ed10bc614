//! Weight files: malformed ones, other spellings, shards, wrong families; named tensors.

use std::path::{Path, PathBuf};

use customttt::data::safetensors::{NewTensor, TensorFile, write};
use customttt::data::{Base, Checkpoint, Motion, NamedTensors, TensorWriter};
use customttt::nn::Params;
use customttt::{Device, Error, Result, Tensor, Weight};
use half::{bf16, f16};

fn cpu() -> Device {
    Device::cpu(Some(1)).unwrap()
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A file with zeros of the given names and shapes.
fn zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let most = tensors.iter().map(|(_, shape)| shape.iter().product()).max().unwrap_or(0);
    let numbers = vec![0.0; most];
    let tensors: Vec<_> = tensors.iter().map(|(n, s)| NewTensor::f32(*n, s, &numbers[..s.iter().product()])).collect();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(path, &tensors, &[("format", "pt")]).unwrap();
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    error.to_string()
}

/// A model of three parameters.
fn model(params: &Params) -> Result<(Weight, Tensor, Tensor)> {
    let layer = params.at("layer");
    Ok((layer.weight("weight", [2, 3])?, layer.tensor("bias", [2])?, params.tensor("norm", [3])?))
}

fn model_file(path: &Path) -> Vec<u8> {
    let w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tensors = [
        NewTensor::f32("layer.weight", &[2, 3], &w),
        NewTensor::f32("layer.bias", &[2], &w[..2]),
        NewTensor::f32("norm", &[3], &w[..3]),
    ];
    write(path, &tensors, &[("format", "pt"), ("note", "some words")]).unwrap();
    std::fs::read(path).unwrap()
}

fn load(path: &Path) -> Result<Vec<f32>> {
    let (a, b, c) = Checkpoint::open(path)?.load(&cpu(), None, model)?;
    Ok([a.to_vec(), b.to_vec(), c.to_vec()].concat())
}

#[test]
fn every_truncation_and_extension_is_an_error() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let whole = model_file(&path);
    assert_eq!(load(&path).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 1.0, 2.0, 3.0]);
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        message(load(&path));
    }
    for extra in [1, 8, 4096] {
        std::fs::write(&path, [&whole[..], &vec![0; extra]].concat()).unwrap();
        assert!(message(load(&path)).contains("belong to no tensor"));
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_means_the_same() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let whole = model_file(&path);
    let same = load(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut harmless = 0;
    for at in 0..whole.len() {
        for mask in (0..8).map(|bit| 1_u8 << bit).chain([0xff, 0x20 | 0x02]) {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            std::fs::write(&path, &bytes).unwrap();
            match load(&path) {
                Err(error) => assert_eq!(error.exit_code(), 5, "byte {at}, mask {mask:#x}: {error}"),
                // No checksum: a changed number is one changed number.
                Ok(numbers) if at >= header => {
                    let changed = numbers.iter().zip(&same).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert_eq!(changed, 1, "byte {at}, mask {mask:#x}");
                }
                Ok(numbers) => {
                    assert_eq!(numbers, same, "byte {at}, mask {mask:#x}");
                    harmless += 1;
                }
            }
        }
    }
    // Letters of the free-form strings, and padding that stays white.
    assert!(harmless > 0 && harmless < 400, "{harmless}");
}

#[test]
fn malformed_headers_are_refused_quickly() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let info = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let many: String =
        (0..70_000).map(|i| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#)).collect();
    for (header, data, part) in [
        (r#"{"a":INFO,"a":INFO}"#.to_string(), 4, "twice"),
        (r#"{"a":INFO,"b":INFO}"#.into(), 4, "does not begin where"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(), 8, "does not begin where"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.into(), 4, "cannot be the bytes"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.into(), 4, "cannot be the bytes"),
        (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#.into(), 4, "cannot be"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.into(), 4, "malformed"),
        (r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#.into(), 4, "F8_E4M3"),
        (r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#.into(), 4, "dimensions"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#.into(), 4, "malformed"),
        (r#"{"a\u001b[2J":INFO}"#.into(), 4, "cannot be the name"),
        (r#"{"":INFO}"#.into(), 4, "cannot be the name"),
        (r#"{"__metadata__":{"a":1},"a":INFO}"#.into(), 4, "malformed"),
        (r#"[INFO]"#.into(), 4, "not a safetensors"),
        (r#"{"a":INFO} {}"#.into(), 4, "malformed"),
        (r#" {"a":INFO}"#.into(), 4, "not a safetensors"),
        (format!(r#"{{{many}"a":INFO}}"#), 4, "65536"),
        (
            format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(1 << 20)),
            4,
            "8 dimensions",
        ),
        (format!(r#"{{"a":{}"#, "[".repeat(1 << 20)), 4, "malformed"),
    ] {
        let header = header.replace("INFO", info);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
        std::fs::write(&path, bytes).unwrap();
        let start = std::time::Instant::now();
        let text = message(TensorFile::open(&path));
        assert!(text.contains(part), "{part}: {text}");
        assert!(start.elapsed().as_millis() < 500, "{part} took {:?}", start.elapsed());
        assert!(!text.contains('\u{1b}') && text.len() < 1000, "{text}");
    }
    for (bytes, part) in [
        (&b"PK\x03\x04 and so on, a zip file"[..], "pickle"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00stateq", "pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in", "web page"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "cut off"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(message(TensorFile::open(&path)).contains(part), "{part}");
    }
    assert!(message(TensorFile::open(dir.path())).contains("regular file"));
    assert!(matches!(TensorFile::open(dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn all_float_types_are_read_also_unaligned() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let x = [1.5_f32, -2.0, 0.25];
    let (h, b, d) = (x.map(f16::from_f32), x.map(bf16::from_f32), x.map(f64::from));
    // One byte in front makes everything behind it unaligned.
    for odd in [0, 1] {
        let mut header = String::from(r#"{"#);
        let (mut data, mut add) = (vec![], |name: &str, dtype: &str, bytes: &[u8], data: &mut Vec<u8>| {
            let start = data.len();
            data.extend(bytes);
            let count = if dtype == "U8" { bytes.len() } else { 3 };
            let end = data.len();
            header += &format!(r#""{name}":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[{start},{end}]}},"#);
        });
        add("odd", "U8", &vec![7; odd], &mut data);
        add("f32", "F32", bytemuck::cast_slice(&x), &mut data);
        add("f16", "F16", bytemuck::cast_slice(&h), &mut data);
        add("bf16", "BF16", bytemuck::cast_slice(&b), &mut data);
        add("f64", "F64", bytemuck::cast_slice(&d), &mut data);
        add("i64", "I64", bytemuck::cast_slice(&[1_i64, -5, 9]), &mut data);
        header.pop();
        header += "}";
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        for entry in file.header().entries() {
            match entry.name.as_str() {
                "odd" => assert_eq!(file.integers(entry).unwrap(), vec![7; odd]),
                "i64" => {
                    assert_eq!(file.integers(entry).unwrap(), [1, -5, 9]);
                    assert!(message(file.numbers(entry)).contains("I64"));
                }
                _ => {
                    assert_eq!(file.numbers(entry).unwrap().to_f32()[..], x);
                    assert!(file.integers(entry).is_err());
                }
            }
        }
    }
}

#[test]
fn what_is_written_the_formats_own_library_reads() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let bytes = model_file(&path);
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), 3);
    let w = theirs.tensor("layer.weight").unwrap();
    assert_eq!((w.shape(), w.data()), (&[2, 3][..], bytemuck::cast_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])));
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["note"], "some words");
}

#[test]
fn everything_wrong_with_a_checkpoint_is_reported_at_once() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let mut tensors: Vec<(String, Vec<usize>)> = (0..11).map(|i| (format!("extra.{i:02}"), vec![1])).collect();
    tensors.push(("layer.weight".into(), vec![3, 2]));
    let tensors: Vec<_> = tensors.iter().map(|(n, s)| (n.as_str(), &s[..])).collect();
    zeros(&path, &tensors);
    let text = message(load(&path));
    for part in [
        "lacks 2 tensors (layer.bias, norm)",
        "misshapes one tensor (layer.weight F32 [3, 2] instead of [2, 3])",
        "has unexpected 11 tensors (extra.00, ",
        "extra.07 and 3 more)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let mut w = [0.0_f32; 6];
    (w[4], w[5]) = (f32::NAN, f32::INFINITY);
    let tensors = [
        NewTensor::f32("layer.weight", &[2, 3], &w),
        NewTensor::f32("layer.bias", &[2], &w[..2]),
        NewTensor::f32("norm", &[3], &w[..3]),
    ];
    write(&path, &tensors, &[]).unwrap();
    assert!(message(load(&path)).contains("layer.weight has 2 numbers that are not finite, the first at 4"));
    Checkpoint::open(&path).unwrap().allowing_non_finite().load(&cpu(), None, model).unwrap();
}

#[test]
fn a_linear_layer_may_be_stored_as_a_convolution() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    zeros(&path, &[("layer.weight", &[2, 3, 1, 1]), ("layer.bias", &[2]), ("norm", &[3])]);
    load(&path).unwrap();
    zeros(&path, &[("layer.weight", &[2, 3, 1]), ("layer.bias", &[2]), ("norm", &[3])]);
    message(load(&path));
}

/// A folder with a UNet's configuration and no weights yet.
fn base(dir: &Path) -> PathBuf {
    let unet = dir.join("unet");
    std::fs::create_dir_all(&unet).unwrap();
    std::fs::write(unet.join("config.json"), r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
    unet
}

#[test]
fn variants_and_shards_are_found() {
    let dir = temporary();
    let unet = base(dir.path());
    let open = || Base::open(dir.path()).unwrap().unet();
    let stored = |variant: Option<&str>| {
        let base = Base::open(dir.path()).unwrap();
        let base = variant.map_or(base.clone(), |v| base.variant(v));
        let unet = base.unet().unwrap();
        (unet.weights.entries().map(|(n, _)| n.to_string()).collect::<Vec<_>>(), unet.note)
    };
    let stem = "diffusion_pytorch_model";
    assert!(message(open()).contains("has no weights"));
    std::fs::write(unet.join(format!("{stem}.bin")), "PK\x03\x04").unwrap();
    assert!(message(open()).contains("only pickle weights"));

    zeros(&unet.join(format!("{stem}.fp16.safetensors")), &[("half", &[1])]);
    let (names, note) = stored(None);
    assert_eq!(names, ["half"]);
    assert!(note.unwrap().contains("fp16"));

    zeros(&unet.join(format!("{stem}-00001-of-00002.safetensors")), &[("a", &[1])]);
    zeros(&unet.join(format!("{stem}-00002-of-00002.safetensors")), &[("b", &[1])]);
    let index = unet.join(format!("{stem}.safetensors.index.json"));
    let map =
        |a: &str, b: &str| format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {{"a": "{a}", "b": "{b}"}}}}"#);
    let (one, two) = (format!("{stem}-00001-of-00002.safetensors"), format!("{stem}-00002-of-00002.safetensors"));
    std::fs::write(&index, map(&one, &two)).unwrap();
    assert_eq!(stored(None), (vec!["a".to_string(), "b".into()], None));
    for outside in ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""] {
        std::fs::write(&index, map(&one, outside)).unwrap();
        assert!(message(open()).contains("not a file beside it"), "{outside}");
    }
    std::fs::write(&index, map(&one, "gone.safetensors")).unwrap();
    assert!(message(open()).contains("gone.safetensors, which is missing"));
    zeros(&unet.join(&two), &[("a", &[1])]);
    std::fs::write(&index, map(&one, &two)).unwrap();
    assert!(message(open()).contains("same parameter"));
    zeros(&unet.join("v-1.safetensors"), &[("v", &[1])]);
    std::fs::write(
        unet.join(format!("{stem}.safetensors.index.non_ema.json")),
        map("v-1.safetensors", "v-1.safetensors"),
    )
    .unwrap();
    assert_eq!(stored(Some("non_ema")).0, ["v"]);

    zeros(&unet.join(format!("{stem}.safetensors")), &[("plain", &[1])]);
    assert_eq!(stored(None), (vec!["plain".to_string()], None));
    assert_eq!(stored(Some("fp16")).0, ["half"]);
    let (names, note) = stored(Some("bf16"));
    assert_eq!(names, ["plain"]);
    assert!(note.unwrap().contains("no such variant"));
}

#[test]
fn wrong_configurations_are_called_by_their_name() {
    let dir = temporary();
    let unet = base(dir.path());
    zeros(&unet.join("diffusion_pytorch_model.safetensors"), &[("a", &[1])]);
    for (json, part) in [
        (r#"{"cross_attention_dim": 2048, "addition_embed_type": "text_time"}"#, "SDXL"),
        (r#"{"cross_attention_dim": 1024}"#, "SD2"),
        (r#"{"in_channels": 9}"#, "inpainting"),
        (r#"{"_class_name": "UNet3DConditionModel"}"#, "UNet3DConditionModel"),
        (r#"{"act_fn": "gelu"}"#, "act_fn"),
        (r#"{"time_cond_proj_dim": 256}"#, "time_cond_proj_dim"),
        (r#"{"block_out_channels": [320, 640]}"#, "equal lengths"),
        (r#"{"block_out_channels": [320, 640, 1280, 1281]}"#, "does not divide a width of 1281"),
        (r#"{"norm_num_groups": 0}"#, "norm_num_groups"),
        (r#"{"attention_head_dim": [8, 8]}"#, "attention heads for 2 blocks"),
        (
            r#"{"down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]}"#,
            "AttnDownBlock2D",
        ),
        (r#"{"cross_attention_dim": "wide"}"#, "cannot be understood"),
        (r#"{"norm_eps": -1}"#, "norm_eps"),
        ("[1, 2", "cannot be understood"),
    ] {
        std::fs::write(unet.join("config.json"), json).unwrap();
        let text = message(Base::open(dir.path()).unwrap().unet());
        assert!(text.contains(part) && text.contains("config.json"), "{part}: {text}");
    }
    for json in [
        r#"{"act_fn": "silu", "sample_size": 64, "num_attention_heads": null, "upcast_attention": true}"#,
        r#"{"attention_head_dim": [8, 8, 8, 8], "transformer_layers_per_block": 1, "mid_block_scale_factor": 1.0}"#,
        r#"{"downsample_padding": 1, "center_input_sample": false, "class_embed_type": null, "an_unknown_key": 1}"#,
    ] {
        std::fs::write(unet.join("config.json"), json).unwrap();
        Base::open(dir.path()).unwrap().unet().unwrap();
    }
    assert!(message(Base::open(dir.path()).unwrap().vae()).contains("has no folder vae"));
    std::fs::write(dir.path().join("model_index.json"), r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    assert!(message(Base::open(dir.path()).unwrap().vae()).contains("FluxPipeline"));
    assert!(message(Base::open(dir.path().join("none"))).contains("does not exist"));
}

#[test]
fn single_files_given_as_a_folder_are_explained() {
    let dir = temporary();
    let path = dir.path().join("model.safetensors");
    for (names, part) in [
        (vec![("model.diffusion_model.input_blocks.0.0.weight", vec![320, 4, 3, 3])], "from_single_file"),
        (vec![("conditioner.embedders.0.x", vec![1]), ("model.diffusion_model.x", vec![1])], "SDXL"),
        (vec![("cond_stage_model.model.x", vec![1]), ("model.diffusion_model.x", vec![1])], "SD2"),
        (vec![("lora_unet_down_blocks_0_x.lora_up.weight", vec![1])], "LoRA in kohya"),
    ] {
        let names: Vec<_> = names.iter().map(|(n, s)| (*n, &s[..])).collect();
        zeros(&path, &names);
        let text = message(Base::open(&path));
        assert!(text.contains("is a file, not a model folder") && text.contains(part), "{part}: {text}");
    }
    std::fs::write(&path, "PK\x03\x04 pickle inside").unwrap();
    assert!(message(Base::open(&path)).contains("torch.load"));
}

#[test]
fn the_scheduler_is_compared_with_the_one_in_use() {
    let dir = temporary();
    let base = Base::open(dir.path()).unwrap();
    assert_eq!(base.scheduler_note().unwrap(), None);
    std::fs::create_dir(dir.path().join("scheduler")).unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("scheduler/scheduler_config.json"), text).unwrap();
    write(r#"{"beta_schedule": "linear", "beta_start": 0.00085, "steps_offset": 1.0, "skip_prk_steps": true}"#);
    assert_eq!(base.scheduler_note().unwrap(), None);
    write(r#"{"beta_schedule": "scaled_linear", "beta_end": 0.012, "set_alpha_to_one": false, "steps_offset": 0}"#);
    let note = base.scheduler_note().unwrap().unwrap();
    for part in ["beta_schedule \"scaled_linear\" (used: \"linear\")", "set_alpha_to_one false", "steps_offset 0"] {
        assert!(note.contains(part), "{part}: {note}");
    }
    assert!(!note.contains("beta_end"));
    write("{");
    message(base.scheduler_note());
}

/// One motion module of width 4 in each of four levels, in the original spelling.
fn motion_names(frames: Option<usize>, mid: bool) -> Vec<(String, Vec<usize>)> {
    let mut names = Vec::new();
    let mut places: Vec<_> = (0..4).map(|i| format!("down_blocks.{i}.motion_modules.0")).collect();
    if mid {
        places.push("mid_block.motion_modules.0".into());
    }
    for place in places {
        let at = format!("{place}.temporal_transformer");
        names.push((format!("{at}.proj_in.weight"), vec![8, 8]));
        names.push((format!("{at}.proj_in.bias"), vec![8]));
        names.push((format!("{at}.transformer_blocks.0.attention_blocks.0.to_q.weight"), vec![8, 8]));
        if let Some(frames) = frames {
            names.push((format!("{at}.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"), vec![1, frames, 8]));
        }
    }
    names
}

/// Writes zeros, but the right numbers for position tables.
fn write_motion(path: &Path, names: &[(String, Vec<usize>)], change: f32) {
    let numbers: Vec<Vec<f32>> = names
        .iter()
        .map(|(name, shape)| {
            if !name.ends_with(".pe") {
                return vec![0.0; shape.iter().product()];
            }
            let (frames, width) = (shape[1], shape[2]);
            let angle = |f: usize, c: usize| f as f32 * 10_000_f32.powf(-((c / 2 * 2) as f32) / width as f32);
            let at = |i: usize| {
                if i.is_multiple_of(2) { angle(i / width, i % width).sin() } else { angle(i / width, i % width).cos() }
            };
            let mut table: Vec<f32> = (0..frames * width).map(at).collect();
            table[frames * width - 1] += change;
            table
        })
        .collect();
    let tensors: Vec<_> = names.iter().zip(&numbers).map(|((n, s), x)| NewTensor::f32(n, s, x)).collect();
    write(path, &tensors, &[]).unwrap();
}

#[test]
fn motion_modules_tell_their_version() {
    let dir = temporary();
    let path = dir.path().join("mm.safetensors");
    for (frames, mid, length, noted) in [
        (Some(24), false, 24, false),
        (Some(32), true, 32, false),
        (Some(32), false, 32, false),
        (None, false, 32, true),
    ] {
        write_motion(&path, &motion_names(frames, mid), 0.0);
        let motion = Motion::open(&path).unwrap();
        assert_eq!(motion.config.motion_max_seq_length, length);
        assert_eq!(motion.config.use_motion_mid_block, mid);
        assert_eq!(motion.config.block_out_channels, [8; 4]);
        assert_eq!(motion.config.motion_layers_per_block, 1);
        assert_eq!(motion.note.is_some(), noted);
        let names: Vec<_> = motion.weights.entries().map(|(n, _)| n.to_string()).collect();
        assert!(names.contains(&"down_blocks.3.motion_modules.0.transformer_blocks.0.attn1.to_q.weight".into()));
        assert!(!names.iter().any(|n| n.ends_with("pe")));
    }
    write_motion(&path, &motion_names(Some(32), false), 0.1);
    let text = message(Motion::open(&path));
    assert!(text.contains("pos_encoder.pe is not the sinusoid table at frame 31, channel 7"), "{text}");
}

#[test]
fn an_adapter_folder_has_its_own_configuration() {
    let dir = temporary();
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    let names: Vec<_> = motion_names(Some(32), false)
        .into_iter()
        .map(|(n, s)| (n.replace("temporal_transformer.", "").replace("attention_blocks.0.", "attn1."), s))
        .collect();
    write_motion(&path, &names, 0.0);
    let config = r#"{"_class_name": "MotionAdapter", "block_out_channels": [8, 8, 8, 8], "motion_layers_per_block": 1,
        "motion_max_seq_length": 32, "use_motion_mid_block": false, "motion_norm": "video"}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for given in [dir.path(), path.as_path()] {
        let motion = Motion::open(given).unwrap();
        assert_eq!(motion.config.motion_norm, customttt::model::config::MotionNorm::Video);
        assert!(
            motion.weights.entry("down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.weight").is_some()
        );
    }
    std::fs::write(dir.path().join("config.json"), config.replace("video", "both")).unwrap();
    message(Motion::open(dir.path()));
    std::fs::write(dir.path().join("config.json"), config.replace("32", "16")).unwrap();
    assert!(message(Motion::open(dir.path())).contains("table of 32 frames; the configuration says 16"));
}

#[test]
fn other_files_given_as_a_motion_module_are_called_by_their_name() {
    let dir = temporary();
    let path = dir.path().join("mm.safetensors");
    let module = "down_blocks.0.motion_modules.0.temporal_transformer";
    for (names, part) in [
        (
            vec![format!("{module}.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.up.weight")],
            "motion LoRA",
        ),
        (
            vec!["down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight".into()],
            "domain adapter",
        ),
        (vec![format!("{module}.transformer_blocks.0.attention_blocks.0.pos_encoder.positional_encoding")], "HotShot"),
        (vec![format!("{module}.proj_in.bias"), "conv_in.weight".into()], "PIA"),
        (vec!["controlnet_cond_embedding.weight".into(), format!("{module}.proj_in.bias")], "SparseCtrl"),
        (vec![format!("{module}.proj_in.bias"), module.replace('0', "2") + ".proj_in.bias"], "SDXL"),
        (vec!["unet.down_blocks.0.x.lora_A.weight".into()], "a LoRA"),
        (vec!["lora_unet_down_blocks_0_x.lora_up.weight".into()], "kohya"),
        (vec!["conv_in.weight".into(), "down_blocks.0.resnets.0.norm1.weight".into()], "UNet"),
        (
            vec!["down_blocks.0.resnets.0.norm1.weight".into(), format!("{module}.norm.bias")],
            "UNet with motion modules",
        ),
        (vec!["model.diffusion_model.x".into()], "single-file checkpoint"),
        (vec!["encoder.down_blocks.0.x".into()], "VAE"),
        (vec!["text_model.embeddings.token_embedding.weight".into()], "text encoder"),
        (vec!["something.else".into()], "no kind that is known"),
    ] {
        let names: Vec<_> = names.iter().map(|n| (n.as_str(), &[1][..])).collect();
        zeros(&path, &names);
        let text = message(Motion::open(&path));
        assert!(text.contains("is not an AnimateDiff motion module but") && text.contains(part), "{part}: {text}");
    }
}

#[test]
fn named_tensors_are_read_whatever_their_type() {
    let dir = temporary();
    let path = dir.path().join("draws.safetensors");
    let mut writer = TensorWriter::new();
    writer.floats("noise", [2, 2], vec![0.5, 1.0, 2.0, 4.0]).integers("timestep", [2], vec![7, 999]);
    writer.floats("whole", [1], vec![3.0]).write(&path).unwrap();
    let file = NamedTensors::open(&path).unwrap();
    assert_eq!(file.floats("noise").unwrap(), Some(([2, 2].into(), vec![0.5, 1.0, 2.0, 4.0])));
    assert_eq!(file.integers("timestep").unwrap(), Some(([2].into(), vec![7, 999])));
    assert_eq!(file.floats("timestep").unwrap().unwrap().1, [7.0, 999.0]);
    assert_eq!(file.unused(), ["whole"]);
    assert_eq!(file.integers("whole").unwrap().unwrap().1, [3]);
    assert_eq!((file.floats("none").unwrap(), file.shape("noise")), (None, Some([2, 2].into())));
    assert!(file.unused().is_empty());
    let error = file.integers("noise").unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("noise has 0.5"), "{error}");
    std::fs::write(&path, "nonsense").unwrap();
    assert_eq!(NamedTensors::open(&path).unwrap_err().exit_code(), 4);
}

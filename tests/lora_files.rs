//! LoRA files: every spelling, scales, and what is refused.

use std::path::Path;

use customttt::data::safetensors::{NewTensor, Stored, TensorFile, write};
use customttt::data::{LoraFile, LoraTensor};
use customttt::{Error, Result};

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

fn lora(module: &str, outputs: usize, rank: usize, inputs: usize) -> LoraTensor {
    let numbers = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect();
    LoraTensor {
        module: module.into(),
        down: numbers(rank * inputs, 0.7),
        up: numbers(outputs * rank, 1.3),
        rank,
        inputs,
        outputs,
    }
}

#[test]
fn lora_files_come_back_as_they_were_written() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let file = LoraFile {
        tensors: vec![
            lora("down_blocks.2.attentions.0.proj_in", 6, 2, 6),
            lora("down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_out.0", 6, 2, 5),
            lora("up_blocks.0.motion_modules.1.transformer_blocks.0.ff.net.2", 4, 3, 7),
        ],
        metadata: [("customttt.seed".to_string(), "7".to_string())].into(),
    };
    file.write(&path).unwrap();
    let back = LoraFile::read(&path).unwrap();
    assert_eq!(back.tensors, file.tensors);
    assert_eq!(back.tensors.iter().map(LoraTensor::is_temporal).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((&back.metadata["format"][..], &back.metadata["customttt.seed"][..]), ("pt", "7"));
    let adapter: serde_json::Value = serde_json::from_str(&back.metadata["lora_adapter_metadata"]).unwrap();
    assert_eq!((&adapter["unet.r"], &adapter["unet.lora_alpha"]), (&2.into(), &2.into()));
    assert_eq!(adapter["unet.rank_pattern"][&file.tensors[2].module], 3);
    let tensors = TensorFile::open(&path).unwrap();
    let find = |name: &str| tensors.header().entries().iter().find(|e| e.name == name).unwrap().clone();
    assert_eq!(find("unet.down_blocks.2.attentions.0.proj_in.lora_A.weight").shape, [2, 6, 1, 1]);
    let entry = find("unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight");
    assert_eq!((entry.shape, entry.stored), (vec![6, 2], Stored::F32));
    // What was read can be written again, to the same bytes.
    let again = dir.path().join("b.safetensors");
    back.write(&again).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());

    let mut bad = file.clone();
    bad.tensors[1].up[3] = f32::NAN;
    let error = bad.write(&path).unwrap_err();
    assert!(
        matches!(&error, Error::NonFinite { tensor: Some(t), .. } if t.ends_with("to_out.0.lora_B.weight")),
        "{error}"
    );
    assert_eq!(LoraFile::read(&path).unwrap().tensors, file.tensors, "the old file must stay");
}

#[test]
fn scales_are_folded_in() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let (down, up) = ([1.0, 2.0], [3.0, 5.0, 7.0]);
    let module = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
    let read = || LoraFile::read(&path).unwrap().tensors[0].up.clone();
    let flat = format!("lora_unet_{}", module.replace('.', "_"));
    for (alpha, want) in [(Some(0.5), [1.5, 2.5, 3.5]), (Some(0.0), up), (None, up)] {
        let alpha = alpha.map(|a| [a]);
        let mut tensors = vec![
            NewTensor::f32(format!("{flat}.lora_down.weight"), &[1, 2], &down),
            NewTensor::f32(format!("{flat}.lora_up.weight"), &[3, 1], &up),
        ];
        tensors.extend(alpha.as_ref().map(|a| NewTensor::f32(format!("{flat}.alpha"), &[], a)));
        write(&path, &tensors, &[]).unwrap();
        assert_eq!(read(), want);
    }
    let tensors = [
        NewTensor::f32(format!("unet.{module}.lora_A.weight"), &[1, 2], &down),
        NewTensor::f32(format!("unet.{module}.lora_B.weight"), &[3, 1], &up),
    ];
    for (json, factor) in [
        (r#"{"unet.r": 1, "unet.lora_alpha": 4}"#.to_string(), 4.0),
        (r#"{"unet.r": 1, "unet.lora_alpha": null}"#.into(), 1.0),
        (format!(r#"{{"unet.lora_alpha": 4, "unet.alpha_pattern": {{"{module}": 2}}}}"#), 2.0),
        (r#"{"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 2, "attn1.to_k": 3}}"#.into(), 2.0),
    ] {
        write(&path, &tensors, &[("lora_adapter_metadata", &json)]).unwrap();
        assert_eq!(read(), up.map(|x| x * factor), "{json}");
    }
    write(&path, &tensors, &[("lora_adapter_metadata", r#"{"unet.use_dora": true}"#)]).unwrap();
    assert!(message(LoraFile::read(&path)).contains("DoRA"));
    write(&path, &tensors, &[("lora_adapter_metadata", "{")]).unwrap();
    message(LoraFile::read(&path));

    let path = dir.path().join("adapter_model.safetensors");
    let tensors = tensors.map(|t| NewTensor { name: t.name.replace("unet.", "base_model.model."), ..t });
    write(&path, &tensors, &[]).unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"r": 1, "lora_alpha": 3, "use_rslora": true}"#).unwrap();
    assert_eq!(LoraFile::read(&path).unwrap().tensors[0].up, up.map(|x| x * 3.0));
}

#[test]
fn the_domain_adapter_of_the_fixtures_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/domain_adapter.safetensors");
    let file = LoraFile::read(path).unwrap();
    assert!(!file.tensors.is_empty() && file.tensors.iter().all(|t| t.rank == 2 && !t.is_temporal()));
    let to_out = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0";
    assert!(file.tensors.iter().any(|t| t.module == to_out && (t.outputs, t.inputs) == (32, 32)));
}

#[test]
fn wrong_lora_files_are_refused_by_name() {
    let dir = temporary();
    let path = dir.path().join("a.safetensors");
    let module = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    for (tensors, part) in [
        (vec![(a.as_str(), vec![2, 3])], "only one of the two"),
        (vec![(&a, vec![2, 3]), (&b, vec![4, 1])], "do not fit each other"),
        (vec![(&a, vec![0, 3]), (&b, vec![4, 0])], "do not fit each other"),
        (vec![(&a, vec![2, 3, 3, 3]), (&b, vec![4, 2, 1, 1])], "neither a linear layer"),
        (vec![(&a, vec![2, 3]), (&b, vec![4, 2]), ("text_encoder.x.lora_A.weight", vec![1])], "text_encoder.x"),
        (vec![("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", vec![1])], "LoHa"),
        (vec![("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", vec![1])], "motion module"),
        (vec![(&a, vec![2, 3]), (&b, vec![4, 2]), (&a[5..], vec![2, 3])], "another spelling"),
        (vec![], "no tensors"),
    ] {
        let tensors: Vec<_> = tensors.iter().map(|(n, s)| (*n, &s[..])).collect();
        zeros(&path, &tensors);
        let text = message(LoraFile::read(&path));
        assert!(text.contains(part), "{part}: {text}");
    }
    let numbers = [1.0, f32::INFINITY];
    write(&path, &[NewTensor::f32(&a, &[1, 2], &numbers), NewTensor::f32(&b, &[2, 1], &[1.0, 1.0])], &[]).unwrap();
    assert!(message(LoraFile::read(&path)).contains("lora_A.weight has 1 numbers that are not finite, the first at 1"));
}

//! Reading fixtures, and building the networks that they were made with.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use customttt::model::config::{MotionConfig, MotionNorm, UNetConfig};
use customttt::model::lora::{Lora, LoraPair};
use customttt::model::unet::UNet;
use customttt::nn::{Params, Recorder, RuleWeights};
use customttt::{Device, Result, Tensor};
use safetensors::{Dtype, SafeTensors};

/// Row-major numbers as another implementation wrote them.
#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

pub struct Fixture {
    pub tensors: BTreeMap<String, Array>,
    /// What made it: among others the model's `config`.
    pub about: serde_json::Value,
}

impl Fixture {
    pub fn read(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("the fixture should have a header");
        let about = &header.metadata().as_ref().expect("the fixture should have metadata")["about"];
        let about = serde_json::from_str(about).expect("the metadata should be JSON");
        let file = SafeTensors::deserialize(&bytes).expect("the fixture should be whole");
        let array = |(name, view): (String, safetensors::tensor::TensorView)| {
            let words = view.data().chunks(4).map(|b| b.try_into().expect("four bytes"));
            let data = match view.dtype() {
                Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                Dtype::I32 => words.map(|b| i32::from_le_bytes(b) as f32).collect(),
                other => panic!("{name} is {other:?}"),
            };
            (name, Array { shape: view.shape().to_vec(), data })
        };
        Fixture { tensors: file.tensors().into_iter().map(array).collect(), about }
    }

    pub fn get(&self, name: &str) -> &Array {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture should have {name}"))
    }

    pub fn integers(&self, name: &str) -> Vec<usize> {
        self.get(name).data.iter().map(|&x| x as usize).collect()
    }

    /// A tensor of the same shape.
    pub fn tensor(&self, device: &Device, name: &str) -> Result<Tensor> {
        let array = self.get(name);
        Tensor::from_slice(device, &array.shape[..], &array.data)
    }

    /// (B, C, H, W) or (B, C, F, H, W) as rows (B*F, H, W, C).
    pub fn rows(&self, device: &Device, name: &str) -> Result<Tensor> {
        to_rows(device, self.get(name))
    }

    /// The LoRA under `prefix`, in the order of `modules`.
    pub fn lora(&self, device: &Device, prefix: &str, modules: &[&str]) -> Result<Lora> {
        let pair = |module: &&str| {
            Ok(LoraPair {
                module: module.to_string(),
                down: self.tensor(device, &format!("{prefix}unet.{module}.lora_A.weight"))?,
                up: self.tensor(device, &format!("{prefix}unet.{module}.lora_B.weight"))?,
            })
        };
        Ok(Lora { pairs: modules.iter().map(pair).collect::<Result<_>>()? })
    }
}

pub fn to_rows(device: &Device, array: &Array) -> Result<Tensor> {
    let [b, c, f, h, w] = video_dims(&array.shape);
    let at = |i: usize| {
        let (i, ch) = (i / c, i % c);
        let (i, x) = (i / w, i % w);
        let (i, y) = (i / h, i % h);
        let (batch, frame) = (i / f, i % f);
        array.data[(((batch * c + ch) * f + frame) * h + y) * w + x]
    };
    let data: Vec<f32> = (0..array.data.len()).map(at).collect();
    Tensor::from_slice(device, [b * f, h, w, c], &data)
}

fn video_dims(shape: &[usize]) -> [usize; 5] {
    match *shape {
        [b, c, h, w] => [b, c, 1, h, w],
        [b, c, f, h, w] => [b, c, f, h, w],
        _ => panic!("{shape:?} is neither pictures nor videos"),
    }
}

/// |got - want| / |want|, where `want` is (B, C, [F,] H, W) and `got` its rows.
pub fn distance_rows(got: &Tensor, want: &Array) -> f64 {
    let rows = to_rows(got.device(), want).expect("the array should have the shape's size");
    assert_eq!(got.shape(), rows.shape(), "the result should have the fixture's shape");
    distance(&got.to_vec(), &rows.to_vec())
}

/// |got - want| / |want| in the L2 norm.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "compared tensors should have equal sizes");
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(&g, &w)| square(f64::from(g) - f64::from(w))).sum();
    let norm: f64 = want.iter().map(|&w| square(f64::from(w))).sum();
    assert!(error.is_finite(), "every number should be finite");
    (error / norm.max(1e-300)).sqrt()
}

pub fn device() -> Device {
    Device::cpu(Some(2)).expect("threads should start")
}

/// The UNet of a fixture with weights by the rule; video UNets get motion modules with the given norm mode.
pub fn unet(device: &Device, about: &serde_json::Value, norm: MotionNorm) -> UNet {
    let config: UNetConfig = serde_json::from_value(about["config"].clone()).expect("the config should be a UNet's");
    let mut motion: MotionConfig = serde_json::from_value(about["config"].clone()).expect("and a motion adapter's");
    motion.motion_layers_per_block = config.layers_per_block;
    motion.motion_norm = norm;
    let video = about["model"] != "UNet2DConditionModel";
    let build = |params: &Params| UNet::new(params, &config, video.then_some((params, &motion)));
    let recorder = Recorder::new();
    build(&Params::new(&recorder, device, None)).expect("names should be enough");
    if let Some(tensors) = about["parameters"]["tensors"].as_u64() {
        assert_eq!(recorder.names().len() as u64, tensors, "number of parameters");
    }
    let weights = RuleWeights::new(&recorder.names(), 1.0);
    build(&Params::new(&weights, device, None)).expect("the rule should fill every parameter")
}

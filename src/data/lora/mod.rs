//! LoRA files: read in every spelling in use, written in that of diffusers and PEFT.

mod keys;
mod layers;
mod scale;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::safetensors::{NewTensor, TensorFile, non_finite, write};
use super::{Checkpoint, Family};
use crate::error::abridged;
use crate::{Error, Result};
use keys::Part;
pub use layers::check_layers;

/// The low-rank update of one layer, `up @ down`, its scale folded in.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensor {
    /// The layer's diffusers name.
    pub module: String,
    /// (rank, inputs).
    pub down: Vec<f32>,
    /// (outputs, rank).
    pub up: Vec<f32>,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl LoraTensor {
    /// True for a layer of a motion module.
    pub fn is_temporal(&self) -> bool {
        self.module.contains("motion_modules.")
    }

    /// The keys of `down` and `up` in a file.
    pub fn keys(&self) -> [String; 2] {
        ["A", "B"].map(|part| format!("unet.{}.lora_{part}.weight", self.module))
    }

    /// SD1.5's spatial transformers begin and end with 1x1 convolutions; PEFT wants their LoRA in four dimensions.
    fn shapes(&self) -> [Vec<usize>; 2] {
        let convolution = self.module.contains(".attentions.")
            && (self.module.ends_with(".proj_in") || self.module.ends_with(".proj_out"));
        let ones: &[usize] = if convolution { &[1, 1] } else { &[] };
        [[self.rank, self.inputs], [self.outputs, self.rank]].map(|pair| [&pair, ones].concat())
    }
}

/// A LoRA file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraFile {
    /// By module name.
    pub tensors: Vec<LoraTensor>,
    /// The file's free-form strings.
    pub metadata: BTreeMap<String, String>,
}

impl LoraFile {
    /// Reads a file of any known spelling: diffusers and PEFT with or without the prefix `unet.`, MotionLoRA,
    /// DiffDirector, attention processors (the domain adapter), kohya. Scales (alpha over rank) are folded in.
    ///
    /// # Errors
    /// [`Error::Model`] naming what is unknown, incomplete, misshapen or not finite.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = TensorFile::open(path)?;
        let refuse = |detail: String| Err(Error::model(path, detail));
        let mut modules = BTreeMap::<String, Parts>::new();
        let mut unknown = Vec::new();
        for entry in file.header().entries() {
            let Some((module, part)) = keys::parse(&entry.name) else {
                unknown.push(entry.name.clone());
                continue;
            };
            let numbers = if entry.stored.is_float() {
                let data = file.numbers(entry)?;
                if let Some((first, count)) = non_finite(&data) {
                    let name = &entry.name;
                    return refuse(format!("{name} has {count} numbers that are not finite, the first at {first}"));
                }
                data.to_f32().into_owned()
            } else {
                file.integers(entry)?.into_iter().map(|x| x as f32).collect()
            };
            if modules.entry(module).or_default().insert(part, &entry.shape, numbers).is_some() {
                return refuse(format!("{} repeats a tensor under another spelling", entry.name));
            }
        }
        if !unknown.is_empty() {
            let what = match Checkpoint::open(path)?.family() {
                Family::Lora | Family::KohyaLora | Family::MotionLora | Family::DomainAdapter => String::new(),
                other => format!("; the file is {other}"),
            };
            return refuse(format!("has {} keys of no LoRA of a UNet: {}{what}", unknown.len(), abridged(&unknown)));
        }
        if modules.is_empty() {
            return refuse("has no tensors".into());
        }
        let scales = scale::Scales::read(path, file.header().metadata())?;
        let mut tensors = Vec::with_capacity(modules.len());
        for (module, parts) in modules {
            tensors.push(parts.join(module, &scales).map_err(|detail| Error::model(path, detail))?);
        }
        Ok(LoraFile { tensors, metadata: file.header().metadata().clone() })
    }

    /// Writes the file so that diffusers gives the same network, whether or not it honours alpha.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first tensor with a NaN or infinity, [`Error::Io`].
    ///
    /// # Panics
    /// If a tensor's numbers do not fit its sizes.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = Vec::with_capacity(2 * self.tensors.len());
        for lora in &self.tensors {
            let parts = [&lora.down, &lora.up];
            for ((key, shape), numbers) in lora.keys().into_iter().zip(lora.shapes()).zip(parts) {
                if numbers.iter().any(|x| !x.is_finite()) {
                    let stage = "writing".to_string();
                    return Err(Error::NonFinite { what: "LoRA", stage, step: 0, tensor: Some(key) });
                }
                tensors.push(NewTensor::f32(key, &shape, numbers));
            }
        }
        let adapter = self.adapter_metadata().to_string();
        let mut metadata = vec![("format", "pt"), ("lora_adapter_metadata", adapter.as_str())];
        let ours = self.metadata.iter().filter(|(key, _)| !metadata.iter().any(|(k, _)| k == key));
        metadata.extend(ours.map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>());
        write(path, &tensors, &metadata)
    }

    /// The arguments of PEFT's `LoraConfig` that make this adapter, alpha being the rank.
    fn adapter_metadata(&self) -> Value {
        let mut counts = BTreeMap::<usize, usize>::new();
        self.tensors.iter().for_each(|t| *counts.entry(t.rank).or_default() += 1);
        let rank = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
        let others = self.tensors.iter().filter(|t| t.rank != rank);
        let pattern: Map<_, _> = others.map(|t| (t.module.clone(), t.rank.into())).collect();
        let modules: Vec<_> = self.tensors.iter().map(|t| t.module.as_str()).collect();
        json!({
            "unet.alpha_pattern": pattern,
            "unet.bias": "none",
            "unet.lora_alpha": rank,
            "unet.lora_dropout": 0.0,
            "unet.peft_type": "LORA",
            "unet.r": rank,
            "unet.rank_pattern": pattern,
            "unet.target_modules": modules,
        })
    }
}

/// What a file has of one module.
#[derive(Default)]
struct Parts {
    found: [Option<(Vec<usize>, Vec<f32>)>; 3],
}

impl Parts {
    /// What was there before.
    fn insert(&mut self, part: Part, shape: &[usize], numbers: Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)> {
        self.found[part as usize].replace((shape.into(), numbers))
    }

    fn join(self, module: String, scales: &scale::Scales) -> Result<LoraTensor, String> {
        let [down, up, alpha] = self.found;
        let (Some((down_shape, down)), Some((up_shape, mut up))) = (down, up) else {
            return Err(format!("{module} has only one of the two matrices of a LoRA"));
        };
        let pair = |shape: &[usize]| match *shape {
            [a, b] | [a, b, 1, 1] => Some((a, b)),
            _ => None,
        };
        let (Some((rank, inputs)), Some((outputs, other))) = (pair(&down_shape), pair(&up_shape)) else {
            return Err(format!(
                "{module} is neither a linear layer nor a 1x1 convolution: {down_shape:?} {up_shape:?}"
            ));
        };
        if rank == 0 || inputs == 0 || outputs == 0 || rank != other {
            return Err(format!("{module} has matrices that do not fit each other: {up_shape:?} @ {down_shape:?}"));
        }
        let scale = match alpha {
            // kohya's files say 0 where they mean the rank.
            Some((_, alpha)) if alpha[..] == [0.0] => 1.0,
            Some((_, alpha)) if alpha.len() == 1 => alpha[0] / rank as f32,
            Some((shape, _)) => return Err(format!("{module} has an alpha of shape {shape:?}")),
            None => scales.of(&module, rank),
        };
        if scale != 1.0 {
            up.iter_mut().for_each(|x| *x *= scale);
        }
        if up.iter().any(|x| !x.is_finite()) {
            return Err(format!("{module} overflows with its scale {scale}"));
        }
        Ok(LoraTensor { module, down, up, rank, inputs, outputs })
    }
}

//! LoRA between files and the engine, and the saved state of a training stage.

use std::path::Path;

use crate::data::{LoraFile, NamedTensors, TensorWriter, check_layers};
use crate::model::lora::{Lora, LoraPair};
use crate::model::unet::UNet;
use crate::train::TrainState;
use crate::{Device, Error, Result, Tensor};

/// Reads a LoRA whose every layer `unet` has.
///
/// # Errors
/// [`Error::Model`] naming the layers that the network lacks or that have other sizes there.
pub fn read(path: &Path, unet: &UNet) -> Result<Lora> {
    LoraFile::read(path)?.into_lora(unet, path)
}

/// Takes the LoRA out of a file of draws, if it holds one.
///
/// # Errors
/// [`Error::Input`] for half a pair, [`Error::Model`] as [`read`].
pub fn from_draws(draws: &NamedTensors, unet: &UNet) -> Result<Option<Lora>> {
    let modules = draws.names().filter_map(|n| n.strip_prefix("unet.")?.strip_suffix(".lora_A.weight"));
    let modules: Vec<String> = modules.map(String::from).collect();
    let factor = |key: &str| {
        let (shape, numbers) = draws.floats(key)?.ok_or_else(|| Error::input(draws.path(), format!("lacks {key}")))?;
        if shape.len() < 2 || shape[2..].iter().any(|&d| d != 1) {
            return Err(Error::input(draws.path(), format!("{key} has the shape {shape}, not that of a matrix")));
        }
        Tensor::from_slice(unet.device(), [shape[0], shape[1]], &numbers)
    };
    let pair = |module: String| {
        let [down, up] = keys(&module).map(|key| factor(&key));
        Ok(LoraPair { module, down: down?, up: up? })
    };
    let lora = Lora { pairs: modules.into_iter().map(pair).collect::<Result<_>>()? };
    check_layers(&lora, unet, draws.path())?;
    Ok((!lora.pairs.is_empty()).then_some(lora))
}

/// Writes a LoRA; its folder is made if need be.
///
/// # Errors
/// [`Error::Io`]; [`Error::NonFinite`].
pub fn write(lora: &Lora, path: &Path) -> Result<()> {
    super::run_folder::prepare_output(path)?;
    let metadata = [("software", concat!("customttt ", env!("CARGO_PKG_VERSION")))];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    LoraFile::from_lora(lora, metadata).write(path)
}

/// The keys of both factors of a layer.
pub fn keys(module: &str) -> [String; 2] {
    ["A", "B"].map(|part| format!("unet.{module}.lora_{part}.weight"))
}

/// Saves everything a stage needs to go on, with its losses so far.
///
/// # Errors
/// [`Error::Io`].
pub fn write_state(state: &TrainState, losses: &[Vec<f32>], path: &Path) -> Result<()> {
    super::run_folder::prepare_output(path)?;
    let mut out = TensorWriter::new();
    for (pair, (down, up)) in state.lora.pairs.iter().zip(&state.momenta) {
        let [a, b] = keys(&pair.module);
        for (key, factor, momentum) in [(a, &pair.down, down), (b, &pair.up, up)] {
            out.floats(format!("momentum.{key}"), momentum.shape(), momentum.to_vec());
            out.floats(key, factor.shape(), factor.to_vec());
        }
    }
    let parts = losses.first().map_or(1, Vec::len);
    out.floats("loss", [losses.len(), parts], losses.concat());
    out.integers("step", [1], vec![state.step as i32]);
    out.write(path)
}

/// Puts a saved state in the place of `state`, which has the layers of the stage; returns the losses so far.
///
/// # Errors
/// [`Error::Input`] if the file is not the state of such a stage.
pub fn read_state(path: &Path, state: &mut TrainState, device: &Device) -> Result<Vec<Vec<f32>>> {
    let file = NamedTensors::open(path)?;
    let lacks =
        |key: &str| Error::input(path, format!("is no saved state of this stage: {key} is missing or misshapen"));
    let tensor = |key: &str, like: &Tensor| match file.floats(key)? {
        Some((shape, numbers)) if shape == like.shape() => Tensor::from_slice(device, shape, &numbers),
        _ => Err(lacks(key)),
    };
    for (pair, (down, up)) in state.lora.pairs.iter_mut().zip(&mut state.momenta) {
        let [a, b] = keys(&pair.module);
        for (key, factor, momentum) in [(a, &mut pair.down, down), (b, &mut pair.up, up)] {
            *momentum = tensor(&format!("momentum.{key}"), momentum)?;
            *factor = tensor(&key, factor)?;
        }
    }
    let step = file.integers("step")?.and_then(|(_, all)| all.first().copied());
    state.step = step.and_then(|s| usize::try_from(s).ok()).ok_or_else(|| lacks("step"))?;
    let (shape, losses) = file.floats("loss")?.ok_or_else(|| lacks("loss"))?;
    if shape.len() != 2 || shape[0] != state.step {
        return Err(lacks("loss"));
    }
    Ok(losses.chunks(shape[1].max(1)).map(<[f32]>::to_vec).collect())
}

//! Between a LoRA file and the LoRA of a network.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{LoraFile, LoraTensor};
use crate::error::abridged;
use crate::model::lora::{Lora, LoraPair};
use crate::model::unet::UNet;
use crate::{Error, Result, Tensor};

impl LoraFile {
    /// The LoRA in the file, for a network that has all its layers. `path` is for the message if it has not.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layers that the network lacks or that have other sizes there.
    pub fn into_lora(self, unet: &UNet, path: &Path) -> Result<Lora> {
        let pair = |t: LoraTensor| {
            let down = Tensor::from_slice(unet.device(), [t.rank, t.inputs], &t.down)?;
            let up = Tensor::from_slice(unet.device(), [t.outputs, t.rank], &t.up)?;
            Ok(LoraPair { module: t.module, down, up })
        };
        let lora = Lora { pairs: self.tensors.into_iter().map(pair).collect::<Result<_>>()? };
        check_layers(&lora, unet, path)?;
        Ok(lora)
    }

    /// A file with the numbers of `lora`.
    pub fn from_lora(lora: &Lora, metadata: BTreeMap<String, String>) -> Self {
        let tensor = |p: &LoraPair| LoraTensor {
            module: p.module.clone(),
            rank: p.down.shape()[0],
            inputs: p.down.shape()[1],
            outputs: p.up.shape()[0],
            down: p.down.to_vec(),
            up: p.up.to_vec(),
        };
        LoraFile { tensors: lora.pairs.iter().map(tensor).collect(), metadata }
    }
}

/// Checks that `unet` has every layer of `lora`, in its size.
///
/// # Errors
/// [`Error::Model`] at `path` naming the layers that the network lacks or that have other sizes there.
pub fn check_layers(lora: &Lora, unet: &UNet, path: &Path) -> Result<()> {
    let layers: HashMap<_, _> = unet.linears().into_iter().map(|l| (l.name(), l.weight())).collect();
    let mut strange = Vec::new();
    for pair in &lora.pairs {
        let Some(weight) = layers.get(pair.module.as_str()) else {
            strange.push(pair.module.clone());
            continue;
        };
        let (found, needed) = ([pair.up.shape()[0], pair.down.shape()[1]], [weight.rows(), weight.columns()]);
        if found != needed || pair.up.shape()[1] != pair.down.shape()[0] {
            let detail = format!("{} changes a {found:?} matrix; the network's is {needed:?}", pair.module);
            return Err(Error::model(path, detail));
        }
    }
    if strange.is_empty() {
        return Ok(());
    }
    let motion = strange.iter().all(|m| m.contains("motion_modules")) && unet.max_frames().is_none();
    let hint = if motion { "; it needs --motion-module" } else { "" };
    let detail = format!("{} layers are not in this network: {}{hint}", strange.len(), abridged(&strange));
    Err(Error::model(path, detail))
}

//! The scale of PEFT adapters, which is not in their tensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::folder::read_json;
use crate::{Error, Result};

/// What decides the scale of each module; without any of it the scale is one.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Scales {
    lora_alpha: Option<f64>,
    alpha_pattern: BTreeMap<String, f64>,
    use_rslora: bool,
    use_dora: bool,
}

impl Scales {
    /// From the metadata that diffusers writes, or the `adapter_config.json` beside a file of PEFT.
    pub(super) fn read(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::model(path, format!("has adapter metadata that is malformed: {e}"));
        let beside = path.with_file_name("adapter_config.json");
        let config = if let Some(text) = metadata.get("lora_adapter_metadata") {
            let all: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
            all.into_iter().filter_map(|(k, v)| Some((k.strip_prefix("unet.")?.to_string(), v))).collect()
        } else if path.file_name() == Some("adapter_model.safetensors".as_ref()) && beside.exists() {
            read_json(&beside)?
        } else {
            Map::new()
        };
        // Unset things are null in some files.
        let set: Map<_, _> = config.into_iter().filter(|(_, v)| !v.is_null()).collect();
        let scales = Scales::deserialize(Value::from(set)).map_err(wrong)?;
        if scales.use_dora {
            return Err(Error::model(path, "is a DoRA adapter, which is not supported; only plain LoRA is"));
        }
        Ok(scales)
    }

    pub(super) fn of(&self, module: &str, rank: usize) -> f32 {
        let names = |key: &str| module == key || module.ends_with(&format!(".{key}"));
        let pattern = self.alpha_pattern.iter().find(|(key, _)| names(key)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        let alpha = pattern.or(self.lora_alpha).unwrap_or(rank);
        (if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32
    }
}

//! AnimateDiff's motion modules: a MotionAdapter.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{UNetConfig, divides, fixed, positive};
use crate::{Error, Result};

/// Over what a motion module's GroupNorm takes its statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MotionNorm {
    /// Each frame by itself, as AnimateDiff does.
    #[default]
    Frame,
    /// All frames together, as diffusers does.
    Video,
}

impl MotionNorm {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The `config.json` of a MotionAdapter. Group counts of the norms come from the UNet.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct MotionConfig {
    pub block_out_channels: Vec<usize>,
    pub motion_layers_per_block: usize,
    pub motion_mid_block_layers_per_block: usize,
    pub motion_num_attention_heads: usize,
    pub motion_norm_num_groups: usize,
    /// Most frames the position table reaches: 24 in v1, 32 in v2 and v3.
    pub motion_max_seq_length: usize,
    /// True in v2 only.
    pub use_motion_mid_block: bool,
    /// Not a key of diffusers: see [`MotionNorm`].
    #[serde(skip_serializing_if = "MotionNorm::is_default")]
    pub motion_norm: MotionNorm,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for MotionConfig {
    fn default() -> Self {
        MotionConfig {
            block_out_channels: vec![320, 640, 1280, 1280],
            motion_layers_per_block: 2,
            motion_mid_block_layers_per_block: 1,
            motion_num_attention_heads: 8,
            motion_norm_num_groups: 32,
            motion_max_seq_length: 32,
            use_motion_mid_block: true,
            motion_norm: MotionNorm::Frame,
            other: Map::new(),
        }
    }
}

impl MotionConfig {
    /// Checks that the adapter is one the crate has.
    ///
    /// # Errors
    /// [`Error::Model`] at `path`.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let class = self.other.get("_class_name").and_then(Value::as_str).unwrap_or("MotionAdapter");
        if class != "MotionAdapter" {
            return Err(Error::model(path, format!("is a {class}, not a MotionAdapter")));
        }
        let pia = "is the adapter of PIA or another model with its own conv_in; plain motion modules are supported";
        if self.other.get("conv_in_channels").is_some_and(|v| !v.is_null()) {
            return Err(Error::model(path, pia));
        }
        if self.block_out_channels.len() == 3 {
            return Err(Error::model(path, "is an SDXL motion adapter (3 blocks); SD1.5's have 4"));
        }
        let one =
            [("motion_transformer_layers_per_block", json!(1)), ("motion_transformer_layers_per_mid_block", json!(1))];
        fixed(path, &self.other, &one)?;
        positive(
            path,
            &[
                ("motion_layers_per_block", self.motion_layers_per_block),
                ("motion_max_seq_length", self.motion_max_seq_length),
            ],
        )?;
        if self.use_motion_mid_block && self.motion_mid_block_layers_per_block != 1 {
            return Err(Error::model(path, "must have motion_mid_block_layers_per_block = 1"));
        }
        for &channels in &self.block_out_channels {
            divides(path, "motion_num_attention_heads", self.motion_num_attention_heads, channels)?;
        }
        Ok(())
    }

    /// Checks that the adapter's motion modules fit between the blocks of `unet`.
    ///
    /// # Errors
    /// [`Error::Model`] at `path` that names the first difference.
    pub fn fits(&self, unet: &UNetConfig, path: &Path) -> Result<()> {
        let mismatch = |key: &str, ours: String, theirs: String| {
            Err(Error::model(path, format!("{key} {ours} does not fit the UNet's {theirs}")))
        };
        if self.block_out_channels != unet.block_out_channels {
            let list = |x: &[usize]| format!("{x:?}");
            return mismatch("block_out_channels", list(&self.block_out_channels), list(&unet.block_out_channels));
        }
        if self.motion_layers_per_block != unet.layers_per_block {
            let (ours, theirs) = (self.motion_layers_per_block, unet.layers_per_block);
            return mismatch("motion_layers_per_block", ours.to_string(), theirs.to_string());
        }
        Ok(())
    }
}

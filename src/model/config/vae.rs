//! The picture codec: an AutoencoderKL.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{divides, fixed, positive};
use crate::{Error, Result};

/// `vae/config.json`: an AutoencoderKL.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    pub norm_num_groups: usize,
    /// What the denoiser sees is the latent times this.
    pub scaling_factor: f32,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            other: Map::new(),
        }
    }
}

impl VaeConfig {
    /// Checks that this is a network the crate has.
    ///
    /// # Errors
    /// [`Error::Model`] at `path`.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let class = self.other.get("_class_name").and_then(Value::as_str).unwrap_or("AutoencoderKL");
        if class != "AutoencoderKL" {
            return Err(Error::model(path, format!("is a {class}, not an AutoencoderKL")));
        }
        let one = [
            ("act_fn", json!("silu")),
            ("mid_block_add_attention", json!(true)),
            ("shift_factor", Value::Null),
            ("use_post_quant_conv", json!(true)),
            ("use_quant_conv", json!(true)),
        ];
        fixed(path, &self.other, &one)?;
        for (key, kind) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types = self.other.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            if let Some(other) = types.iter().find(|t| t.as_str() != Some(kind)) {
                return Err(Error::model(path, format!("has {other} among its {key}; only {kind} is known")));
            }
        }
        if self.block_out_channels.is_empty() {
            return Err(Error::model(path, "block_out_channels is empty"));
        }
        positive(
            path,
            &[
                ("in_channels", self.in_channels),
                ("out_channels", self.out_channels),
                ("latent_channels", self.latent_channels),
                ("layers_per_block", self.layers_per_block),
            ],
        )?;
        for &channels in &self.block_out_channels {
            divides(path, "norm_num_groups", self.norm_num_groups, channels)?;
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(Error::model(path, format!("scaling_factor {} is not positive", self.scaling_factor)));
        }
        Ok(())
    }
}

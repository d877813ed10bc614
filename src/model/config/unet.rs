//! The denoiser: a UNet2DConditionModel of SD1.5's kind.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{divides, epsilon, fixed, positive};
use crate::{Error, Result};

/// One number for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PerBlock {
    All(usize),
    Each(Vec<usize>),
}

/// `unet/config.json`: a UNet2DConditionModel.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Channels of each level, from full resolution down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a down block; an up block has one more.
    pub layers_per_block: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    /// In SD1.5's files this is the number of heads, whatever its name says.
    pub attention_head_dim: PerBlock,
    /// Wins over `attention_head_dim` where present.
    pub num_attention_heads: Option<PerBlock>,
    /// Width of the text states.
    pub cross_attention_dim: usize,
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' norms; those of the transformers have 1e-6.
    pub norm_eps: f64,
    /// Cosines before sines in the embedding of the timestep.
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    /// Linear layers where SD1.5 has 1x1 convolutions.
    pub use_linear_projection: bool,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(String::from).to_vec();
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        UNetConfig {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            down_block_types: names([down, down, down, "DownBlock2D"]),
            up_block_types: names(["UpBlock2D", up, up, up]),
            attention_head_dim: PerBlock::All(8),
            num_attention_heads: None,
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            use_linear_projection: false,
            other: Map::new(),
        }
    }
}

impl UNetConfig {
    /// Number of down blocks, and of up blocks.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Attention heads at a level, 0 being full resolution; up block `i` is at level `levels() - 1 - i`, the mid
    /// block at the last one.
    pub fn heads(&self, level: usize) -> usize {
        match self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim) {
            PerBlock::All(heads) => *heads,
            PerBlock::Each(heads) => heads[level],
        }
    }

    /// Width of the timestep's embedding after its two linear layers.
    pub fn time_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// True if down block `i` attends to the text.
    pub fn down_has_attention(&self, i: usize) -> bool {
        self.down_block_types[i].starts_with("CrossAttn")
    }

    /// True if up block `i` attends to the text.
    pub fn up_has_attention(&self, i: usize) -> bool {
        self.up_block_types[i].starts_with("CrossAttn")
    }

    /// Checks that this is a network the crate has.
    ///
    /// # Errors
    /// [`Error::Model`] at `path` that says what the configuration is, if not SD1.5's kind.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let refuse = |detail: String| Err(Error::model(path, detail));
        let set = |key: &str| self.other.get(key).is_some_and(|v| !v.is_null());
        if set("addition_embed_type") || self.cross_attention_dim == 2048 {
            return refuse("is an SDXL UNet; only SD1.5 models work with SD1.5 motion modules".into());
        }
        if self.cross_attention_dim == 1024 {
            return refuse("is an SD2 UNet (text width 1024); only SD1.5 models (768) fit the motion modules".into());
        }
        if self.in_channels == 9 {
            return refuse("is an inpainting UNet (9 input channels); use the plain text-to-image model".into());
        }
        let class = self.other.get("_class_name").and_then(Value::as_str).unwrap_or("UNet2DConditionModel");
        if class != "UNet2DConditionModel" {
            return refuse(format!("is a {class}, not a UNet2DConditionModel"));
        }
        fixed(path, &self.other, &unet_fixed())?;
        let levels = self.levels();
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return refuse("block_out_channels, down_block_types and up_block_types must have equal lengths".into());
        }
        for (kind, types) in [("Down", &self.down_block_types), ("Up", &self.up_block_types)] {
            let known = [format!("{kind}Block2D"), format!("CrossAttn{kind}Block2D")];
            if let Some(other) = types.iter().find(|t| !known.contains(t)) {
                return refuse(format!("has a block of type {other}; only {} and {} are known", known[0], known[1]));
            }
        }
        if let Some(PerBlock::Each(heads)) = self.num_attention_heads.as_ref().or(Some(&self.attention_head_dim))
            && heads.len() != levels
        {
            return refuse(format!("has attention heads for {} blocks, but {levels} blocks", heads.len()));
        }
        positive(
            path,
            &[
                ("in_channels", self.in_channels),
                ("out_channels", self.out_channels),
                ("layers_per_block", self.layers_per_block),
                ("cross_attention_dim", self.cross_attention_dim),
            ],
        )?;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            divides(path, "norm_num_groups", self.norm_num_groups, channels)?;
            divides(path, "attention heads", self.heads(level), channels)?;
        }
        epsilon(path, "norm_eps", self.norm_eps)
    }
}

/// Keys of a UNet that have one possible value here; an absent or null key is taken as that.
fn unet_fixed() -> Vec<(&'static str, Value)> {
    vec![
        ("act_fn", json!("silu")),
        ("attention_type", json!("default")),
        ("center_input_sample", json!(false)),
        ("class_embed_type", Value::Null),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("downsample_padding", json!(1)),
        ("dropout", json!(0.0)),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        ("mid_block_scale_factor", json!(1)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("num_class_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("time_cond_proj_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("time_embedding_dim", Value::Null),
        ("time_embedding_type", json!("positional")),
        ("timestep_post_act", Value::Null),
        ("transformer_layers_per_block", json!(1)),
        ("reverse_transformer_layers_per_block", Value::Null),
    ]
}

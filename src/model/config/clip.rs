//! CLIP: the text encoder of the denoiser, and the whole model of the metrics.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{divides, epsilon, positive};
use crate::{Error, Result};

/// Activation of a CLIP layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`.
    #[default]
    QuickGelu,
    /// The exact one, by the error function.
    Gelu,
}

/// `text_encoder/config.json`: a CLIPTextModel.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub bos_token_id: Option<u32>,
    /// The pooled state is that of this token's first place; files that say 2 mean the largest id.
    pub eos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            bos_token_id: Some(49406),
            eos_token_id: Some(49407),
            pad_token_id: Some(1),
            other: Map::new(),
        }
    }
}

impl TextConfig {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Model`] at `path`.
    pub fn validate(&self, path: &Path) -> Result<()> {
        positive(
            path,
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("max_position_embeddings", self.max_position_embeddings),
            ],
        )?;
        divides(path, "num_attention_heads", self.num_attention_heads, self.hidden_size)?;
        epsilon(path, "layer_norm_eps", self.layer_norm_eps)
    }
}

/// The picture half of a CLIPModel.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            other: Map::new(),
        }
    }
}

impl VisionConfig {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Model`] at `path`.
    pub fn validate(&self, path: &Path) -> Result<()> {
        positive(
            path,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("num_channels", self.num_channels),
                ("image_size", self.image_size),
            ],
        )?;
        divides(path, "num_attention_heads", self.num_attention_heads, self.hidden_size)?;
        if self.patch_size == 0 || self.patch_size > self.image_size {
            return Err(Error::model(path, format!("patch_size {} of {} pixels", self.patch_size, self.image_size)));
        }
        epsilon(path, "layer_norm_eps", self.layer_norm_eps)
    }
}

/// The `config.json` of a CLIPModel.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ClipConfig {
    pub text_config: TextConfig,
    pub vision_config: VisionConfig,
    /// Width of the embeddings both halves end in.
    pub projection_dim: usize,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for ClipConfig {
    fn default() -> Self {
        ClipConfig {
            text_config: TextConfig::default(),
            vision_config: VisionConfig::default(),
            projection_dim: 512,
            other: Map::new(),
        }
    }
}

impl ClipConfig {
    /// Checks both halves.
    ///
    /// # Errors
    /// [`Error::Model`] at `path`.
    pub fn validate(&self, path: &Path) -> Result<()> {
        if let Some(kind) = self.other.get("model_type").and_then(Value::as_str).filter(|k| *k != "clip") {
            return Err(Error::model(path, format!("is a model of type {kind}, not a CLIPModel")));
        }
        positive(path, &[("projection_dim", self.projection_dim)])?;
        self.text_config.validate(path)?;
        self.vision_config.validate(path)
    }
}

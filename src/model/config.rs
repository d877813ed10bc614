//! The `config.json` of each component as diffusers and transformers write it, with their defaults. Keys that
//! change nothing here are let pass; keys that ask for another network are refused by name.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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

fn fixed(path: &Path, other: &Map<String, Value>, expected: &[(&str, Value)]) -> Result<()> {
    for (key, only) in expected {
        let value = other.get(*key).unwrap_or(&Value::Null);
        let same = match (value.as_f64(), only.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => value == only,
        };
        if !value.is_null() && !same {
            return Err(Error::model(path, format!("has {key} = {value}; only {only} is supported")));
        }
    }
    Ok(())
}

fn positive(path: &Path, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 24) {
        Some((key, size)) => Err(Error::model(path, format!("{key} = {size} is out of range"))),
        None => Ok(()),
    }
}

fn divides(path: &Path, key: &str, parts: usize, whole: usize) -> Result<()> {
    if parts == 0 || whole == 0 || whole > 1 << 24 || !whole.is_multiple_of(parts) {
        return Err(Error::model(path, format!("{key} = {parts} does not divide a width of {whole}")));
    }
    Ok(())
}

fn epsilon(path: &Path, key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(Error::model(path, format!("{key} = {value}"))) }
}

//! The sizes random models come in.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::model::config::{ClipConfig, MotionConfig, PerBlock, TextConfig, UNetConfig, VaeConfig, VisionConfig};

/// The configurations of a set of models that fit each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub unet: UNetConfig,
    pub vae: VaeConfig,
    pub text: TextConfig,
    pub motion: MotionConfig,
    /// For metrics; independent of the others.
    pub clip: ClipConfig,
}

struct Sizes {
    channels: [usize; 4],
    heads: usize,
    groups: usize,
    /// Width, layers, heads.
    text: [usize; 3],
    vae_channels: [usize; 4],
    vae_groups: usize,
    clip_text: [usize; 3],
    clip_vision: [usize; 3],
    image: usize,
    patch: usize,
    projection: usize,
}

impl Recipe {
    /// Names of the sizes there are.
    pub const NAMES: [&str; 3] = ["tiny", "small", "sd15"];

    /// `tiny` for tests, `small` for experiments on a CPU, `sd15` for the sizes of Stable Diffusion 1.5,
    /// AnimateDiff v3 and CLIP ViT-B/32.
    pub fn named(name: &str) -> Option<Self> {
        let sizes = match name {
            "tiny" => Sizes {
                channels: [32, 64, 64, 96],
                heads: 4,
                groups: 16,
                text: [48, 2, 4],
                vae_channels: [16, 32, 32, 32],
                vae_groups: 16,
                clip_text: [48, 2, 4],
                clip_vision: [48, 2, 4],
                image: 32,
                patch: 8,
                projection: 32,
            },
            "small" => Sizes {
                channels: [64, 128, 256, 256],
                heads: 8,
                groups: 32,
                text: [96, 3, 4],
                vae_channels: [32, 64, 64, 64],
                vae_groups: 32,
                clip_text: [96, 3, 4],
                clip_vision: [96, 3, 4],
                image: 64,
                patch: 16,
                projection: 64,
            },
            "sd15" => Sizes {
                channels: [320, 640, 1280, 1280],
                heads: 8,
                groups: 32,
                text: [768, 12, 12],
                vae_channels: [128, 256, 512, 512],
                vae_groups: 32,
                clip_text: [512, 12, 8],
                clip_vision: [768, 12, 12],
                image: 224,
                patch: 32,
                projection: 512,
            },
            _ => return None,
        };
        Some(Self::of(&sizes))
    }

    fn of(sizes: &Sizes) -> Self {
        let text = |[width, layers, heads]: [usize; 3]| TextConfig {
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            pad_token_id: Some(49407),
            ..TextConfig::default()
        };
        let [width, layers, heads] = sizes.clip_vision;
        let vision = VisionConfig {
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            image_size: sizes.image,
            patch_size: sizes.patch,
            ..VisionConfig::default()
        };
        Recipe {
            unet: UNetConfig {
                block_out_channels: sizes.channels.to_vec(),
                attention_head_dim: PerBlock::All(sizes.heads),
                cross_attention_dim: sizes.text[0],
                norm_num_groups: sizes.groups,
                ..UNetConfig::default()
            },
            vae: VaeConfig {
                block_out_channels: sizes.vae_channels.to_vec(),
                layers_per_block: 2,
                norm_num_groups: sizes.vae_groups,
                ..VaeConfig::default()
            },
            text: text(sizes.text),
            motion: MotionConfig {
                block_out_channels: sizes.channels.to_vec(),
                motion_num_attention_heads: sizes.heads,
                motion_norm_num_groups: sizes.groups,
                use_motion_mid_block: false,
                ..MotionConfig::default()
            },
            clip: ClipConfig {
                text_config: text(sizes.clip_text),
                vision_config: vision,
                projection_dim: sizes.projection,
                ..ClipConfig::default()
            },
        }
    }

    /// Checks that the models exist and fit each other.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the first thing that does not.
    pub fn validate(&self) -> Result<()> {
        let path = std::path::Path::new("sizes");
        self.unet.validate(path)?;
        self.vae.validate(path)?;
        self.text.validate(path)?;
        self.motion.validate(path)?;
        self.motion.fits(&self.unet, path)?;
        self.clip.validate(path)?;
        if self.unet.cross_attention_dim != self.text.hidden_size {
            let (theirs, ours) = (self.unet.cross_attention_dim, self.text.hidden_size);
            return Err(crate::Error::model(path, format!("text width {ours} does not fit the UNet's {theirs}")));
        }
        Ok(())
    }

    /// `unet/config.json` with the keys that diffusers writes.
    pub(super) fn unet_json(&self) -> Value {
        with(
            &self.unet,
            json!({
                "_class_name": "UNet2DConditionModel",
                "_diffusers_version": DIFFUSERS,
                "act_fn": "silu",
                "center_input_sample": false,
                "downsample_padding": 1,
                "mid_block_scale_factor": 1,
                "sample_size": 64,
            }),
        )
    }

    pub(super) fn vae_json(&self) -> Value {
        let levels = self.vae.block_out_channels.len();
        with(
            &self.vae,
            json!({
                "_class_name": "AutoencoderKL",
                "_diffusers_version": DIFFUSERS,
                "act_fn": "silu",
                "down_block_types": vec!["DownEncoderBlock2D"; levels],
                "sample_size": 512,
                "up_block_types": vec!["UpDecoderBlock2D"; levels],
            }),
        )
    }

    pub(super) fn motion_json(&self) -> Value {
        with(&self.motion, json!({"_class_name": "MotionAdapter", "_diffusers_version": DIFFUSERS}))
    }

    pub(super) fn text_json(&self, dtype: &str) -> Value {
        with(
            &self.text,
            json!({
                "architectures": ["CLIPTextModel"],
                "model_type": "clip_text_model",
                "projection_dim": self.text.hidden_size,
                "torch_dtype": dtype,
            }),
        )
    }

    pub(super) fn clip_json(&self, dtype: &str) -> Value {
        let mut json = with(
            &self.clip,
            json!({
                "architectures": ["CLIPModel"],
                "logit_scale_init_value": 2.6592,
                "model_type": "clip",
                "torch_dtype": dtype,
            }),
        );
        for (half, kind) in [("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")] {
            json[half]["model_type"] = kind.into();
            json[half]["projection_dim"] = self.clip.projection_dim.into();
        }
        json
    }

    /// The picture preparation that belongs to the CLIP model.
    pub(super) fn preprocessor_json(&self) -> Value {
        let side = self.clip.vision_config.image_size;
        json!({
            "crop_size": {"height": side, "width": side},
            "do_center_crop": true,
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1.0 / 255.0,
            "size": {"shortest_edge": side},
        })
    }
}

/// The version of diffusers whose keys are written; old enough for every release in use to read them.
const DIFFUSERS: &str = "0.21.0";

/// A configuration and the keys that are not its fields, sorted as diffusers does.
fn with(config: &impl serde::Serialize, more: Value) -> Value {
    let mut all = Map::new();
    for part in [serde_json::to_value(config).expect("a configuration should be JSON"), more] {
        let Value::Object(part) = part else { panic!("a configuration should be a map") };
        all.extend(part);
    }
    let mut keys: Vec<_> = all.into_iter().collect();
    keys.sort_by(|(a, _), (b, _)| a.cmp(b));
    Value::Object(keys.into_iter().collect())
}

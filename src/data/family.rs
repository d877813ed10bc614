//! What a weight file is, told from its names and shapes, so that a wrong file can be called by its name.

use std::fmt;

/// Kinds of weight files people have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    UNet,
    SdxlUNet,
    Sd2UNet,
    InpaintingUNet,
    MotionUNet,
    Vae,
    TextEncoder,
    Clip,
    MotionModule,
    SdxlMotionModule,
    HotShot,
    Pia,
    SparseControl,
    MotionLora,
    DomainAdapter,
    Lora,
    KohyaLora,
    OtherAdapter,
    SingleFile,
    SdxlSingleFile,
    Sd2SingleFile,
    LdmVae,
    Unknown,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Family::UNet => "a Stable Diffusion 1 UNet",
            Family::SdxlUNet => "an SDXL UNet; only SD1.5 is supported",
            Family::Sd2UNet => "an SD2 UNet (text width 1024); only SD1.5 is supported",
            Family::InpaintingUNet => "an inpainting UNet (9 input channels); the plain text-to-image model is needed",
            Family::MotionUNet => "a UNet with motion modules in it",
            Family::Vae => "a VAE",
            Family::TextEncoder => "a CLIP text encoder",
            Family::Clip => "a CLIP model",
            Family::MotionModule => "an AnimateDiff motion module",
            Family::SdxlMotionModule => "a motion module for SDXL; only those for SD1.5 are supported",
            Family::HotShot => "a HotShot motion module, which is not AnimateDiff's",
            Family::Pia => "a PIA or FancyVideo module (it has its own conv_in), which is not a plain motion module",
            Family::SparseControl => "a SparseCtrl network, not a motion module",
            Family::MotionLora => "a motion LoRA; it belongs on top of a motion module (--lora)",
            Family::DomainAdapter => "AnimateDiff's domain adapter or a LoRA of its kind (--domain-adapter, --lora)",
            Family::Lora => "a LoRA (--lora)",
            Family::KohyaLora => "a LoRA in kohya's spelling (--lora)",
            Family::OtherAdapter => "a LoHa, LoKr or DoRA adapter, which is not supported; only plain LoRA is",
            Family::SingleFile => {
                "a single-file checkpoint; convert it to a folder once with Python: from diffusers import \
                 StableDiffusionPipeline; StableDiffusionPipeline.from_single_file(\"IN\").save_pretrained(\"OUT\")"
            }
            Family::SdxlSingleFile => "a single-file SDXL checkpoint; only SD1.5 is supported",
            Family::Sd2SingleFile => "a single-file SD2 checkpoint; only SD1.5 is supported",
            Family::LdmVae => {
                "a VAE in the original spelling; convert it once with Python: from diffusers import AutoencoderKL; \
                 AutoencoderKL.from_single_file(\"IN\").save_pretrained(\"OUT\")"
            }
            Family::Unknown => "of no kind that is known here",
        })
    }
}

/// Tells the kind of a file from the names and shapes stored in it.
pub fn identify<'a>(stored: impl Iterator<Item = (&'a str, &'a [usize])>) -> Family {
    let stored: Vec<_> = stored.collect();
    let has = |part: &str| stored.iter().any(|(name, _)| name.contains(part));
    let begins = |part: &str| stored.iter().any(|(name, _)| name.starts_with(part));
    let input_of = |end: &str| stored.iter().find(|(n, _)| n.ends_with(end)).and_then(|(_, s)| s.get(1)).copied();
    let motion = has("motion_modules.") || has("temporal_transformer");
    if has("hada_w") || has("lokr_w") || has("dora_scale") || has("lora_magnitude") {
        Family::OtherAdapter
    } else if begins("lora_unet_") || begins("lora_te_") {
        Family::KohyaLora
    } else if has("lora") {
        if has(".processor.") || has("_lora.") {
            if motion { Family::MotionLora } else { Family::DomainAdapter }
        } else {
            Family::Lora
        }
    } else if has("controlnet_cond_embedding") {
        Family::SparseControl
    } else if begins("model.diffusion_model.") || begins("cond_stage_model.") || begins("conditioner.") {
        if begins("conditioner.") {
            Family::SdxlSingleFile
        } else if begins("cond_stage_model.model.") || input_of("attn2.to_k.weight") == Some(1024) {
            Family::Sd2SingleFile
        } else {
            Family::SingleFile
        }
    } else if has("pos_encoder.positional_encoding") {
        Family::HotShot
    } else if motion {
        if has(".resnets.") {
            Family::MotionUNet
        } else if has("conv_in.") {
            Family::Pia
        } else if !has("down_blocks.3.") && has("down_blocks.2.") {
            Family::SdxlMotionModule
        } else {
            Family::MotionModule
        }
    } else if begins("encoder.down_blocks.") || begins("decoder.up_blocks.") {
        Family::Vae
    } else if begins("encoder.down.") || begins("first_stage_model.") || begins("decoder.up.") {
        Family::LdmVae
    } else if has("down_blocks.") && has("conv_in.") {
        if begins("add_embedding.") {
            Family::SdxlUNet
        } else if input_of("conv_in.weight") == Some(9) {
            Family::InpaintingUNet
        } else if input_of("attn2.to_k.weight") == Some(1024) {
            Family::Sd2UNet
        } else {
            Family::UNet
        }
    } else if has("vision_model.") {
        Family::Clip
    } else if has("embeddings.token_embedding.") {
        Family::TextEncoder
    } else {
        Family::Unknown
    }
}

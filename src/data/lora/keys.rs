//! Spellings of LoRA keys.

use super::super::names;

/// Which of a module's tensors a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Down,
    Up,
    Alpha,
}

const SUFFIXES: [(&str, Part); 13] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora.alpha", Part::Alpha),
    ("_lora.alpha", Part::Alpha),
    (".alpha", Part::Alpha),
];

/// The diffusers name of the module a key belongs to, and the part; `None` for what is not a LoRA of a UNet.
pub(super) fn parse(key: &str) -> Option<(String, Part)> {
    let (module, part) = SUFFIXES.iter().find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, *part)))?;
    let module = match module.strip_prefix("lora_unet_") {
        Some(flat) => dotted(flat),
        None => {
            let module = module.strip_prefix("base_model.model.").unwrap_or(module);
            module.strip_prefix("unet.").unwrap_or(module).replace(".processor.", ".")
        }
    };
    let mut module = names::motion(&format!("{module}."))?;
    module.pop();
    if module.ends_with(".to_out") {
        module += ".0";
    }
    let known = ["down_blocks.", "mid_block.", "up_blocks."];
    known.iter().any(|start| module.starts_with(start)).then_some((module, part))
}

/// Names whose own underscores stay.
const WORDS: [&str; 15] = [
    "down_blocks",
    "up_blocks",
    "mid_block",
    "motion_modules",
    "temporal_transformer",
    "transformer_blocks",
    "attention_blocks",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "conv_shortcut",
    "time_emb_proj",
];

/// kohya's names have underscores for dots: puts the dots back.
fn dotted(flat: &str) -> String {
    let mut name = String::with_capacity(flat.len());
    let mut rest = flat;
    while !rest.is_empty() {
        let whole = |word: &&&str| rest.strip_prefix(**word).is_some_and(|r| r.is_empty() || r.starts_with('_'));
        let end = match WORDS.iter().find(whole) {
            Some(word) => word.len(),
            None => rest.find('_').unwrap_or(rest.len()),
        };
        if !name.is_empty() {
            name.push('.');
        }
        name += &rest[..end];
        rest = rest[end..].strip_prefix('_').unwrap_or(&rest[end..]);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_the_name_of_diffusers() {
        let attention = "down_blocks.2.motion_modules.0.transformer_blocks.0.attn1";
        let original = "down_blocks.2.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0";
        let spatial = "up_blocks.1.attentions.2.transformer_blocks.0";
        let flat = spatial.replace('.', "_");
        for (key, module) in [
            (format!("unet.{attention}.to_q.lora_A.weight"), format!("{attention}.to_q")),
            (format!("{attention}.to_out.0.lora_A.weight"), format!("{attention}.to_out.0")),
            (format!("base_model.model.unet.{attention}.to_k.lora_A.weight"), format!("{attention}.to_k")),
            (format!("base_model.model.{attention}.to_k.lora_A.default.weight"), format!("{attention}.to_k")),
            (format!("unet.{attention}.to_v.lora.down.weight"), format!("{attention}.to_v")),
            // MotionLoRA, and what DiffDirector makes of it.
            (format!("{original}.processor.to_q_lora.down.weight"), format!("{attention}.to_q")),
            (format!("{original}.processor.to_out_lora.down.weight"), format!("{attention}.to_out.0")),
            (format!("{original}.to_out.processor.0_lora.down.weight"), format!("{attention}.to_out.0")),
            (
                original.replace("attention_blocks.0", "ff.net.0.processor.proj_lora.down.weight"),
                attention.replace("attn1", "ff.net.0.proj"),
            ),
            (
                original.replace("attention_blocks.0", "ff.net.processor.2_lora.down.weight"),
                attention.replace("attn1", "ff.net.2"),
            ),
            // Attention processors: the domain adapter and DiffDirector's spatial files.
            (format!("{spatial}.attn1.processor.to_q_lora.down.weight"), format!("{spatial}.attn1.to_q")),
            (format!("{spatial}.attn2.processor.to_out_lora.down.weight"), format!("{spatial}.attn2.to_out.0")),
            (format!("{spatial}.ff.net.0.proj_lora.down.weight"), format!("{spatial}.ff.net.0.proj")),
            (format!("{spatial}.ff.net.2_lora.down.weight"), format!("{spatial}.ff.net.2")),
            ("up_blocks.1.attentions.2.proj_in_lora.down.weight".into(), "up_blocks.1.attentions.2.proj_in".into()),
            // kohya
            (format!("lora_unet_{flat}_attn1_to_out_0.lora_down.weight"), format!("{spatial}.attn1.to_out.0")),
            (format!("lora_unet_{flat}_ff_net_0_proj.lora_down.weight"), format!("{spatial}.ff.net.0.proj")),
            (format!("lora_unet_{flat}_ff_net_2.lora_down.weight"), format!("{spatial}.ff.net.2")),
            (
                "lora_unet_mid_block_attentions_0_proj_out.lora_down.weight".into(),
                "mid_block.attentions.0.proj_out".into(),
            ),
            (format!("lora_unet_{}_to_q.lora_down.weight", original.replace('.', "_")), format!("{attention}.to_q")),
        ] {
            assert_eq!(parse(&key), Some((module, Part::Down)), "{key}");
        }
        assert_eq!(parse("lora_unet_mid_block_attentions_0_proj_in.alpha").unwrap().1, Part::Alpha);
        assert_eq!(parse("unet.up_blocks.0.x.lora_B.weight").unwrap().1, Part::Up);
        for other in [
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
            "down_blocks.0.attentions.0.proj_in.weight",
            "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
            "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}

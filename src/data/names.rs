//! Spellings of parameter names: from what files have to what the models ask for. `None` is a buffer that is not
//! a parameter.

/// UNet names, which are the model's.
pub fn unet(name: &str) -> Option<String> {
    Some(name.into())
}

/// VAE names; older files call the parts of the attention otherwise.
pub fn vae(name: &str) -> Option<String> {
    const OLD: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    let old = OLD.iter().find(|(old, _)| name.contains(".attentions.") && name.contains(old));
    Some(old.map_or_else(|| name.into(), |(old, new)| name.replace(old, new)))
}

/// Names of a text encoder, with the prefix `text_model.` that some files lack; a whole CLIP model will do.
pub fn text(name: &str) -> Option<String> {
    let rest = ["vision_model.", "visual_projection.", "text_projection.", "logit_scale"];
    if buffer(name) || rest.iter().any(|part| name.starts_with(part)) {
        None
    } else if name.starts_with("text_model.") {
        Some(name.into())
    } else {
        Some(format!("text_model.{name}"))
    }
}

/// Names of a whole CLIP model.
pub fn clip(name: &str) -> Option<String> {
    (!buffer(name)).then(|| name.into())
}

/// Names of motion modules, from the original spelling or diffusers'. Position tables are left out: see
/// [`is_position_table`].
pub fn motion(name: &str) -> Option<String> {
    let name = name.strip_prefix("module.").unwrap_or(name);
    (!is_position_table(name)).then(|| {
        name.replace(".norms.0.", ".norm1.")
            .replace(".norms.1.", ".norm2.")
            .replace(".ff_norm.", ".norm3.")
            .replace(".attention_blocks.0.", ".attn1.")
            .replace(".attention_blocks.1.", ".attn2.")
            .replace(".temporal_transformer.", ".")
    })
}

/// True for the table of frame positions, which is a formula and not a parameter.
pub fn is_position_table(name: &str) -> bool {
    name.ends_with("pos_encoder.pe") || name.ends_with("pos_embed.pe")
}

fn buffer(name: &str) -> bool {
    name.ends_with("position_ids") || name.ends_with("num_batches_tracked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(name: &str) -> Option<String> {
        Some(name.into())
    }

    #[test]
    fn original_motion_names_become_those_of_diffusers() {
        let module = "down_blocks.0.motion_modules.1";
        let block = format!("{module}.temporal_transformer.transformer_blocks.0");
        for (from, to) in [
            (format!("{module}.temporal_transformer.norm.weight"), "norm.weight"),
            (format!("{module}.temporal_transformer.proj_in.bias"), "proj_in.bias"),
            (format!("{block}.attention_blocks.0.to_q.weight"), "transformer_blocks.0.attn1.to_q.weight"),
            (format!("{block}.attention_blocks.1.to_out.0.bias"), "transformer_blocks.0.attn2.to_out.0.bias"),
            (format!("{block}.norms.0.weight"), "transformer_blocks.0.norm1.weight"),
            (format!("{block}.norms.1.bias"), "transformer_blocks.0.norm2.bias"),
            (format!("{block}.ff_norm.bias"), "transformer_blocks.0.norm3.bias"),
            (format!("{block}.ff.net.0.proj.weight"), "transformer_blocks.0.ff.net.0.proj.weight"),
            (format!("module.{block}.ff.net.2.weight"), "transformer_blocks.0.ff.net.2.weight"),
        ] {
            let to = format!("{module}.{to}");
            assert_eq!(motion(&from), some(&to));
            assert_eq!(motion(&to), some(&to), "diffusers' own spelling should stay");
        }
        assert_eq!(motion(&format!("{block}.attention_blocks.0.pos_encoder.pe")), None);
        assert_eq!(motion(&format!("{module}.transformer_blocks.0.pos_embed.pe")), None);
    }

    #[test]
    fn older_and_shorter_spellings_are_understood() {
        let at = "encoder.mid_block.attentions.0";
        for (old, new) in [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")] {
            assert_eq!(vae(&format!("{at}.{old}.bias")), some(&format!("{at}.{new}.bias")));
            assert_eq!(vae(&format!("{at}.{new}.bias")), some(&format!("{at}.{new}.bias")));
        }
        assert_eq!(vae("encoder.conv_in.weight"), some("encoder.conv_in.weight"));
        assert_eq!(text("final_layer_norm.bias"), some("text_model.final_layer_norm.bias"));
        assert_eq!(text("text_model.final_layer_norm.bias"), some("text_model.final_layer_norm.bias"));
        for left_out in ["text_model.embeddings.position_ids", "vision_model.x", "text_projection.weight"] {
            assert_eq!(text(left_out), None);
        }
        assert_eq!(clip("vision_model.embeddings.position_ids"), None);
        assert_eq!(clip("text_projection.weight"), some("text_projection.weight"));
    }
}

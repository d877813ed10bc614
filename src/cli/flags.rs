//! Every flag, once: its spellings, the settings it writes and the commands that take it.

/// Sets of commands, one bit each.
pub const RUN: u16 = 1;
pub const DEMO: u16 = 2;
pub const SPATIAL: u16 = 4;
pub const TEMPORAL: u16 = 8;
pub const TTT: u16 = 16;
pub const SAMPLE: u16 = 32;
pub const FORWARD: u16 = 64;
pub const RESUME: u16 = 128;
/// Commands that only take what every command takes.
pub const PLAIN: u16 = 256;

const WHOLE: u16 = RUN | DEMO;
const TRAIN: u16 = SPATIAL | TEMPORAL;
const JOB: u16 = WHOLE | TRAIN | TTT | SAMPLE;
const BARE: u16 = FORWARD | PLAIN;
const VIDEO: u16 = WHOLE | TEMPORAL | TTT | SAMPLE;

/// One flag.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    /// Other tools' spellings, accepted but not shown. Underscores for hyphens are accepted without being listed.
    pub aliases: &'static [&'static str],
    /// The settings it writes; the first one's kind and help are the flag's.
    pub keys: &'static [&'static str],
    pub on: u16,
}

const fn flag(name: &'static str, keys: &'static [&'static str], on: u16) -> Flag {
    Flag { name, short: None, aliases: &[], keys, on }
}

impl Flag {
    const fn short(self, short: char) -> Self {
        Flag { short: Some(short), ..self }
    }
    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Flag { aliases, ..self }
    }
}

/// All flags that stand for settings.
#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    flag("base", &["model.base"], JOB | FORWARD).short('m').also(&["pretrained-model-name-or-path", "model", "ckpt"]),
    flag("motion-module", &["model.motion_module"], VIDEO | FORWARD),
    flag("domain-adapter", &["model.domain_adapter"], JOB | FORWARD).also(&["domain-adapter-path"]),
    flag("motion-norm", &["model.motion_norm"], VIDEO | FORWARD),
    flag("beta-schedule", &["model.beta_schedule"], JOB),
    flag("recompute", &["model.recompute"], WHOLE | TRAIN | TTT).also(&["grad-ckpt", "gradient-checkpointing"]),

    flag("subject", &["data.subject.path"], WHOLE | SPATIAL).also(&["instance-data-dir"]),
    flag("subject-name", &["data.subject.name"], JOB & !TEMPORAL),
    flag("spatial-prompt", &["data.subject.prompt"], WHOLE | SPATIAL),
    flag("motion", &["data.motion.path"], WHOLE | TEMPORAL),
    flag("motion-prompt", &["data.motion.prompt"], VIDEO),
    flag("motion-phrase", &["data.motion.phrase"], WHOLE | TTT | SAMPLE),
    flag("frames", &["data.frames"], VIDEO).short('T').also(&["video-frames", "num-frames", "L"]),
    flag("width", &["data.width"], JOB).short('W'),
    flag("height", &["data.height"], JOB).short('H'),
    flag("fit", &["data.fit"], WHOLE | TRAIN),
    flag("ffmpeg", &["data.ffmpeg"], WHOLE | TEMPORAL),
    flag("frame-start", &["data.motion.start"], WHOLE | TEMPORAL).also(&["sample-start-idx"]),
    flag("frame-step", &["data.motion.step"], WHOLE | TEMPORAL),
    flag("clip-fps", &["data.motion.fps"], WHOLE | TEMPORAL),

    flag("spatial-steps", &["spatial.steps"], WHOLE),
    flag("lr-spatial", &["spatial.lr"], WHOLE).also(&["spatial-lr"]),
    flag("temporal-steps", &["temporal.steps"], WHOLE),
    flag("lr-temporal", &["temporal.lr"], WHOLE).also(&["temporal-lr"]),
    flag("ttt-steps", &["ttt.steps"], WHOLE),
    flag("lr-ttt", &["ttt.lr"], WHOLE).also(&["ttt-lr"]),
    flag("rank", &["spatial.rank", "temporal.rank"], WHOLE).also(&["network-dim", "lora-rank"]),
    flag("spatial-rank", &["spatial.rank"], WHOLE),
    flag("temporal-rank", &["temporal.rank"], WHOLE),
    flag("blocks", &["spatial.blocks", "temporal.blocks"], WHOLE),
    flag("spatial-blocks", &["spatial.blocks"], WHOLE),
    flag("temporal-blocks", &["temporal.blocks"], WHOLE),
    flag("spatial-layers", &["spatial.layers"], WHOLE),
    flag("temporal-layers", &["temporal.layers"], WHOLE),
    flag("dropout", &["spatial.dropout", "temporal.dropout", "ttt.dropout"], WHOLE),
    flag("spatial-dropout", &["spatial.dropout"], WHOLE),
    flag("temporal-dropout", &["temporal.dropout"], WHOLE),
    flag("ttt-dropout", &["ttt.dropout"], WHOLE),
    flag("weight-decay", &["spatial.weight_decay", "temporal.weight_decay", "ttt.weight_decay"], WHOLE),
    flag("betas", &["spatial.betas", "temporal.betas", "ttt.betas"], WHOLE),
    flag("temporal-loss", &["temporal.loss"], WHOLE),
    flag("ttt-loss", &["ttt.loss"], WHOLE),

    flag("steps", &["spatial.steps"], SPATIAL).also(&["train-steps", "max-train-steps"]),
    flag("lr", &["spatial.lr"], SPATIAL).also(&["learning-rate", "unet-lr"]),
    flag("rank", &["spatial.rank"], SPATIAL).also(&["network-dim", "lora-rank"]),
    flag("blocks", &["spatial.blocks"], SPATIAL),
    flag("layers", &["spatial.layers"], SPATIAL),
    flag("dropout", &["spatial.dropout"], SPATIAL),
    flag("weight-decay", &["spatial.weight_decay"], SPATIAL),
    flag("betas", &["spatial.betas"], SPATIAL),
    flag("init-lora", &["spatial.init_lora"], SPATIAL),
    flag("lora-out", &["spatial.lora_out"], SPATIAL),
    flag("draws", &["spatial.draws"], SPATIAL),
    flag("dump", &["spatial.dump"], SPATIAL),
    flag("dump-grads", &["spatial.dump_grads"], SPATIAL),

    flag("steps", &["temporal.steps"], TEMPORAL).also(&["train-steps", "max-train-steps"]),
    flag("lr", &["temporal.lr"], TEMPORAL).also(&["learning-rate", "unet-lr"]),
    flag("rank", &["temporal.rank"], TEMPORAL).also(&["network-dim", "lora-rank"]),
    flag("blocks", &["temporal.blocks"], TEMPORAL),
    flag("layers", &["temporal.layers"], TEMPORAL),
    flag("dropout", &["temporal.dropout"], TEMPORAL),
    flag("weight-decay", &["temporal.weight_decay"], TEMPORAL),
    flag("betas", &["temporal.betas"], TEMPORAL),
    flag("loss", &["temporal.loss"], TEMPORAL),
    flag("joint-spatial", &["temporal.joint_spatial"], WHOLE | TEMPORAL),
    flag("init-lora", &["temporal.init_lora"], TEMPORAL),
    flag("lora-out", &["temporal.lora_out"], TEMPORAL),
    flag("draws", &["temporal.draws"], TEMPORAL),
    flag("dump", &["temporal.dump"], TEMPORAL),
    flag("dump-grads", &["temporal.dump_grads"], TEMPORAL),

    flag("spatial-lora", &["ttt.spatial_lora"], TTT),
    flag("temporal-lora", &["ttt.temporal_lora"], TTT),
    flag("spatial-out", &["ttt.spatial_out"], TTT),
    flag("temporal-out", &["ttt.temporal_out"], TTT),
    flag("steps", &["ttt.steps"], TTT).also(&["train-steps", "max-train-steps"]),
    flag("lr", &["ttt.lr"], TTT).also(&["learning-rate", "unet-lr"]),
    flag("dropout", &["ttt.dropout"], TTT),
    flag("weight-decay", &["ttt.weight_decay"], TTT),
    flag("betas", &["ttt.betas"], TTT),
    flag("loss", &["ttt.loss"], TTT),
    flag("ref-steps", &["ttt.ref_steps"], WHOLE | TTT),
    flag("ref-cfg", &["ttt.ref_cfg"], WHOLE | TTT),
    flag("reference", &["ttt.reference"], WHOLE | TTT),
    flag("references", &["ttt.references"], WHOLE | TTT),
    flag("appearance-frames", &["ttt.appearance_frames"], WHOLE | TTT),
    flag("student-motion", &["ttt.student_motion"], WHOLE | TTT),
    flag("ttt-scope", &["ttt.scope"], WHOLE),
    flag("ttt-scene", &["ttt.scene"], WHOLE),
    flag("student-prompt", &["ttt.student_prompt"], WHOLE | TTT),
    flag("appearance-prompts", &["ttt.appearance_prompts"], WHOLE | TTT),
    flag("motion-prompts", &["ttt.motion_prompts"], WHOLE | TTT),
    flag("doing", &["ttt.doing"], WHOLE | TTT),
    flag("object", &["ttt.object"], WHOLE | TTT),
    flag("draws", &["ttt.draws"], TTT),
    flag("dump", &["ttt.dump"], TTT),
    flag("dump-grads", &["ttt.dump_grads"], TTT),

    flag("prompt", &["sample.prompts"], WHOLE | SAMPLE).short('p'),
    flag("negative", &["sample.negative"], WHOLE | SAMPLE).short('n').also(&["negative-prompt", "n-prompt"]),
    flag("steps", &["sample.steps"], WHOLE | SAMPLE).short('s').also(&["num-inference-steps"]),
    flag("cfg", &["sample.cfg"], WHOLE | SAMPLE).short('g').also(&["guidance-scale", "cfg-scale"]),
    flag("spatial-scale", &["sample.spatial_scale"], WHOLE | SAMPLE),
    flag("temporal-scale", &["sample.temporal_scale"], WHOLE | SAMPLE),
    flag("fps", &["sample.fps"], WHOLE | SAMPLE).short('f'),
    flag("before-ttt", &["sample.before_ttt"], WHOLE),
    flag("lora", &["sample.lora"], SAMPLE | FORWARD).also(&["lora-path"]),
    flag("draws", &["sample.draws"], SAMPLE),
    flag("save-latents", &["sample.save_latents"], SAMPLE),

    flag("output", &["output.dir"], JOB).short('o').also(&["output-dir", "out"]),
    flag("save-every", &["output.save_every"], WHOLE | TRAIN | TTT).also(&["save-every-n-steps", "checkpointing-steps"]),

    flag("preset", &["preset"], JOB),
    flag("seed", &["seed"], JOB | BARE),
    flag("device", &["device"], JOB | BARE),
    flag("precision", &["precision"], JOB | BARE).also(&["mixed-precision"]),
    flag("threads", &["threads"], JOB | BARE | RESUME),
    flag("progress", &["log.progress"], JOB | BARE | RESUME),
    flag("events", &["log.events"], JOB | BARE | RESUME),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings;

    #[test]
    fn flags_name_settings_and_clash_in_no_command() {
        for flag in FLAGS {
            for key in flag.keys {
                assert!(settings::find(key).is_some(), "--{} writes {key}, which is no setting", flag.name);
            }
        }
        for bit in (0..9).map(|b| 1 << b) {
            let flags: Vec<&Flag> = FLAGS.iter().filter(|f| f.on & bit != 0).collect();
            let mut names: Vec<String> = Vec::new();
            for f in flags {
                names.push(f.name.into());
                names.extend(f.aliases.iter().map(|a| a.to_string()));
                names.extend(f.short.map(|c| format!("-{c}")));
            }
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "two flags of command {bit} share a spelling");
        }
    }

    #[test]
    fn every_setting_can_be_given_as_a_flag() {
        for s in settings::SETTINGS.iter().filter(|s| s.key != "version") {
            assert!(FLAGS.iter().any(|f| f.keys.contains(&s.key)), "no flag writes {}", s.key);
        }
    }
}

//! Every setting of a job, once: its key in the config file, its kind, its default and what it means. Flags, config
//! files, the environment, presets and the saved configuration all read this table.

use super::kind::Kind;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Dotted key: `spatial.steps` is `steps` in the table `[spatial]`.
    pub key: &'static str,
    pub kind: Kind,
    /// As it would be written on the command line; without one, the setting may stay unset.
    pub default: Option<&'static str>,
    pub help: &'static str,
}

const fn set(key: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { key, kind, default: Some(default), help }
}

const fn unset(key: &'static str, kind: Kind, help: &'static str) -> Setting {
    Setting { key, kind, default: None, help }
}

const STEPS: Kind = Kind::Count(1, 1_000_000);
const DDIM_STEPS: Kind = Kind::Count(1, 1000);
const LAST_STEP: Kind = Kind::Count(0, 999_999);
const RANK: Kind = Kind::Count(1, 4096);
const SIDE: Kind = Kind::Count(8, 4096);
const RATE: Kind = Kind::Real(|x| x > 0.0 && x <= 1.0, "in (0, 1]");
const DROPOUT: Kind = Kind::Real(|x| (0.0..1.0).contains(&x), "in [0, 1)");
const DECAY: Kind = Kind::Real(|x| (0.0..=10.0).contains(&x), "in [0, 10]");
const GUIDANCE: Kind = Kind::Real(|x| (0.0..=1000.0).contains(&x), "in [0, 1000]");
const SCALE: Kind = Kind::Real(|x| x.abs() <= 100.0, "in [-100, 100]");
const FPS: Kind = Kind::Real(|x| (0.1..=1000.0).contains(&x), "in [0.1, 1000]");
const LOSS: Kind = Kind::Choice(&["plain", "debiased"]);
/// Layers of the method, or those of DiffDirector, which adds the spatial projections.
const LAYERS: Kind = Kind::Choice(&["attention-ff", "attention", "ff", "with-projections"]);

/// All settings, in the order in which they are saved.
#[rustfmt::skip]
pub static SETTINGS: &[Setting] = &[
    set("version", Kind::Count(1, 1), "1", "Version of this file's layout"),
    set("preset", Kind::Choice(&["paper", "fast"]), "paper", "paper: the published settings; fast: far fewer steps, for a first look on a CPU"),
    set("seed", Kind::Seed, "0", "Seed of every random number"),
    set("device", Kind::Text, "auto", "auto, cpu, cuda or cuda:N; auto takes a usable GPU, else the CPU"),
    unset("precision", Kind::Choice(&["fp32", "fp16"]), "Storage of frozen weights [default: fp32 on the CPU, fp16 on CUDA]"),
    unset("threads", Kind::Count(1, 1024), "Worker threads of the CPU [default: all cores]"),

    unset("model.base", Kind::Path, "Folder of a Stable Diffusion 1.5 model as diffusers stores it"),
    unset("model.motion_module", Kind::Path, "AnimateDiff motion module: a file, or a MotionAdapter folder"),
    unset("model.domain_adapter", Kind::ScaledPath, "AnimateDiff v3 domain adapter, merged into the spatial attention"),
    unset("model.motion_norm", Kind::Choice(&["frame", "video"]), "Group norm statistics of motion modules [default: the adapter's config, else frame]"),
    set("model.beta_schedule", Kind::Choice(&["linear", "scaled_linear"]), "linear", "Noise schedule"),
    set("model.recompute", Kind::Switch, "off", "Compute each UNet block again in the backward pass: less memory, more time"),

    set("data.width", SIDE, "256", "Width of the video in pixels, a multiple of 8"),
    set("data.height", SIDE, "256", "Height of the video in pixels, a multiple of 8"),
    set("data.frames", Kind::Count(1, 32), "16", "Frames of the video"),
    set("data.fit", Kind::Choice(&["crop", "letterbox"]), "crop", "How inputs of another aspect ratio are fitted"),
    unset("data.ffmpeg", Kind::Text, "The ffmpeg program for clips the built-in readers refuse, or never [default: the one on PATH]"),
    unset("data.subject.path", Kind::Path, "Folder of pictures of the subject (jpg, png, webp)"),
    unset("data.subject.name", Kind::Text, "What the subject is, such as \"teddy bear\""),
    unset("data.subject.prompt", Kind::Text, "Prompt of the spatial stage [default: A {subject-name}.]"),
    unset("data.motion.path", Kind::Path, "Clip of the motion: a video, a GIF or a folder of frames"),
    unset("data.motion.prompt", Kind::Text, "What the clip shows, such as \"a man is playing guitar\""),
    unset("data.motion.phrase", Kind::Text, "The motion alone, such as \"is playing guitar\" [default: the motion prompt after its first noun phrase]"),
    set("data.motion.start", Kind::Count(0, 1_000_000), "0", "First frame of the clip to use"),
    set("data.motion.step", Kind::Count(1, 10_000), "1", "Distance from one frame used to the next"),
    unset("data.motion.fps", FPS, "Resample the clip to this rate first"),

    set("spatial.steps", STEPS, "500", "Steps of the spatial stage"),
    set("spatial.lr", RATE, "1e-5", "Learning rate of the spatial stage"),
    set("spatial.rank", RANK, "32", "Rank of the spatial LoRA"),
    set("spatial.blocks", Kind::Blocks, "2,6", "UNet blocks with a spatial LoRA (of 0,1,2,4,6,7,8), or all"),
    set("spatial.layers", LAYERS, "attention-ff", "Layers of those blocks with a LoRA"),
    set("spatial.dropout", DROPOUT, "0.1", "Dropout of the spatial LoRA in training"),
    set("spatial.weight_decay", DECAY, "0.1", "Weight decay of the spatial stage"),
    set("spatial.betas", Kind::Betas, "0.9,0.99", "Lion's betas of the spatial stage"),
    unset("spatial.init_lora", Kind::Path, "LoRA to start the spatial stage from"),
    unset("spatial.lora_out", Kind::Path, "File for the trained spatial LoRA"),
    unset("spatial.draws", Kind::Path, "File of the random numbers to use in the spatial stage"),
    unset("spatial.dump", Kind::Path, "File for the losses of the spatial stage"),
    unset("spatial.dump_grads", LAST_STEP, "Also dump the gradients of this step (0-based)"),

    set("temporal.steps", STEPS, "500", "Steps of the temporal stage"),
    set("temporal.lr", RATE, "5e-5", "Learning rate of the temporal stage"),
    set("temporal.rank", RANK, "32", "Rank of the temporal LoRA"),
    set("temporal.blocks", Kind::Blocks, "2,5", "UNet blocks with a temporal LoRA (of 0,1,2,3,5,6,7,8; 4 with a v2 module), or all"),
    set("temporal.layers", LAYERS, "attention-ff", "Layers of those blocks with a LoRA"),
    set("temporal.dropout", DROPOUT, "0.1", "Dropout of the temporal LoRA in training"),
    set("temporal.weight_decay", DECAY, "0.1", "Weight decay of the temporal stage"),
    set("temporal.betas", Kind::Betas, "0.9,0.99", "Lion's betas of the temporal stage"),
    set("temporal.loss", LOSS, "debiased", "plain, or plain plus the appearance-debiased term"),
    set("temporal.joint_spatial", Kind::Switch, "off", "Train a throw-away spatial LoRA alongside, as DiffDirector does, by the settings of the spatial stage"),
    unset("temporal.init_lora", Kind::Path, "LoRA to start the temporal stage from"),
    unset("temporal.lora_out", Kind::Path, "File for the trained temporal LoRA"),
    unset("temporal.draws", Kind::Path, "File of the random numbers to use in the temporal stage"),
    unset("temporal.dump", Kind::Path, "File for the losses of the temporal stage"),
    unset("temporal.dump_grads", LAST_STEP, "Also dump the gradients of this step (0-based)"),

    set("ttt.steps", STEPS, "30", "Steps of test-time training"),
    set("ttt.lr", RATE, "1e-6", "Learning rate of test-time training"),
    set("ttt.dropout", DROPOUT, "0.1", "Dropout of the student's LoRAs"),
    set("ttt.weight_decay", DECAY, "0.1", "Weight decay of test-time training"),
    set("ttt.betas", Kind::Betas, "0.9,0.99", "Lion's betas of test-time training"),
    set("ttt.ref_steps", DDIM_STEPS, "5", "DDIM steps of the references"),
    set("ttt.ref_cfg", GUIDANCE, "9", "Guidance of the references (1: none)"),
    set("ttt.reference", Kind::Choice(&["clean", "partial"]), "clean", "clean: a whole short run, noised at a random time; partial: the first steps of a run of 25, taken one forward step back"),
    set("ttt.references", Kind::Choice(&["fresh", "once"]), "fresh", "Sample new references every step, or once"),
    set("ttt.appearance_frames", Kind::Choice(&["all", "one"]), "all", "Frames of the appearance reference"),
    set("ttt.student_motion", Kind::Switch, "on", "Motion modules of the student on the appearance reference"),
    set("ttt.loss", LOSS, "plain", "Loss on the motion reference: plain, or plus the appearance-debiased term"),
    set("ttt.scope", Kind::Choice(&["pair", "prompt"]), "pair", "Adapt once for all prompts, or for each on its own with its scene words"),
    set("ttt.scene", Kind::Switch, "off", "Use the video's prompt, scene words included, for the student"),
    unset("ttt.student_prompt", Kind::Text, "Prompt of the student [default: {subject-name} {motion phrase}]"),
    unset("ttt.appearance_prompts", Kind::Path, "File of prompts for the appearance reference, one a line, one drawn each step"),
    unset("ttt.motion_prompts", Kind::Path, "File of prompts for the motion reference, one a line, one drawn each step"),
    set("ttt.doing", Kind::Texts, "sitting,standing,walking,sleeping", "What the subject does in the appearance reference, one drawn each step"),
    set("ttt.object", Kind::Texts, "a man,a dog,a bear,a robot", "Who moves in the motion reference, one drawn each step"),
    unset("ttt.spatial_lora", Kind::Path, "Trained spatial LoRA"),
    unset("ttt.temporal_lora", Kind::Path, "Trained temporal LoRA"),
    unset("ttt.spatial_out", Kind::Path, "File for the adapted spatial LoRA"),
    unset("ttt.temporal_out", Kind::Path, "File for the adapted temporal LoRA"),
    unset("ttt.draws", Kind::Path, "File of the random numbers to use in test-time training"),
    unset("ttt.dump", Kind::Path, "File for the losses of test-time training"),
    unset("ttt.dump_grads", LAST_STEP, "Also dump the gradients of this step (0-based)"),

    unset("sample.prompts", Kind::Prompts, "Prompt of the video; may be repeated [default: {subject-name} {motion phrase}]"),
    set("sample.negative", Kind::Text, "", "Negative prompt"),
    set("sample.steps", DDIM_STEPS, "25", "DDIM steps of the video"),
    set("sample.cfg", GUIDANCE, "9", "Guidance of the video (1: none)"),
    set("sample.spatial_scale", SCALE, "1", "Scale of the spatial LoRA in the video"),
    set("sample.temporal_scale", SCALE, "1", "Scale of the temporal LoRA in the video"),
    set("sample.fps", FPS, "8", "Frame rate of the video"),
    set("sample.before_ttt", Kind::Switch, "on", "Also sample the video before test-time training"),
    unset("sample.lora", Kind::ScaledPaths, "LoRA to sample with; may be repeated"),
    unset("sample.draws", Kind::Path, "File of the random numbers to use in sampling"),
    unset("sample.save_latents", Kind::Path, "File for the sampled latents"),

    unset("output.dir", Kind::Path, "Run folder"),
    set("output.save_every", STEPS, "50", "Steps from one saved state to the next"),

    set("log.progress", Kind::Choice(&["auto", "plain", "json", "off"]), "auto", "Bars on a terminal and lines elsewhere, always lines, JSON lines, or nothing"),
    unset("log.events", Kind::Text, "File for events, one JSON object a line; - is stdout"),
];

/// What the preset `fast` changes.
pub static FAST: &[(&str, &str)] = &[
    ("spatial.steps", "60"),
    ("temporal.steps", "20"),
    ("ttt.steps", "3"),
    ("ttt.ref_steps", "2"),
    ("sample.steps", "10"),
];

/// The setting with this key.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}

/// Keys and tables, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().flat_map(|s| std::iter::once(s.key).chain(s.key.rsplit_once('.').map(|(table, _)| table)))
}

/// The candidate closest to a misspelt word, if one is close.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let distance = |c: &str| edits(word, c);
    let (best, candidate) = candidates.map(|c| (distance(c), c)).min_by_key(|&(d, c)| (d, c.len()))?;
    (best <= word.chars().count().max(candidate.chars().count()) / 2).then_some(candidate)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_defaults_valid() {
        for (i, s) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS[..i].iter().all(|other| other.key != s.key), "{} twice", s.key);
            if let Some(text) = s.default {
                let value = s.kind.parse(text).unwrap_or_else(|e| panic!("{}: {e}", s.key));
                s.kind.check(&value).unwrap_or_else(|e| panic!("{}: {e}", s.key));
            }
        }
        for (key, text) in FAST {
            let kind = find(key).unwrap_or_else(|| panic!("no setting {key}")).kind;
            kind.check(&kind.parse(text).unwrap()).unwrap();
        }
    }

    #[test]
    fn misspellings_find_their_neighbour() {
        assert_eq!(nearest("spatial.stepz", names()), Some("spatial.steps"));
        assert_eq!(nearest("data.subjct.name", names()), Some("data.subject.name"));
        assert_eq!(nearest("spatail", names()), Some("spatial"));
        assert_eq!(nearest("zzzzzzzzzzzzzzzzzz", names()), None);
    }
}

//! The command line: a clap tree made from the table of flags, and what it yields, unchecked.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::Shell;

use super::config::Layers;
use super::flags::{self, FLAGS, Flag};
use super::invocation::{Forward, InitWeights, Invocation, Task, Verb};
use super::kind::{Kind, Value};
use super::settings;

/// Parses the command line.
///
/// # Errors
/// Clap's error, which also stands for `--help` and `--version`.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = tree().try_get_matches_from(words)?;
    let (name, m) = matches.subcommand().expect("a subcommand should be required");
    let (verb, m) = match name {
        "train" => {
            let (stage, m) = m.subcommand().expect("a stage should be required");
            (Verb::Job(if stage == "spatial" { Task::Spatial } else { Task::Temporal }), m)
        }
        "resume" => (Verb::Resume { run: one(m, "run").expect("RUN should be required") }, m),
        "forward" => (Verb::Forward(forward(m)), m),
        "init-weights" => (Verb::InitWeights(init_weights(m)), m),
        "info" => (Verb::Info, m),
        "completions" => (Verb::Completions(one(m, "shell").expect("SHELL should be required")), m),
        other => (Verb::Job(Task::named(other).expect("every command should be matched")), m),
    };
    let mut invocation = Invocation { verb, layers: Layers::default(), json: false, verbosity: 0 };
    if matches!(invocation.verb, Verb::Completions(_)) {
        return Ok(invocation);
    }
    invocation.json = m.get_flag("json");
    invocation.verbosity = if m.get_flag("quiet") { -1 } else { m.get_count("verbose").min(9) as i8 };
    invocation.layers = Layers { file: file_of(m), set: many(m, "set"), flags: given(m, invocation.bit()) };
    Ok(invocation)
}

/// The command tree, for parsing, help and completions.
pub fn tree() -> Command {
    let train = Command::new("train")
        .about("Train one LoRA: spatial (appearance) or temporal (motion)")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(job(Task::Spatial, "spatial", "Train the spatial LoRA on pictures of the subject"))
        .subcommand(job(Task::Temporal, "temporal", "Train the temporal LoRA on a clip of the motion"));
    let run = RUN_HELP;
    Command::new("customttt")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Videos of your subject in your motion: CustomTTT, on a hand-written engine")
        .after_help("Start with `customttt demo`: the whole job on random weights, no files needed.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .max_term_width(120)
        .subcommand(job(Task::Run, "run", "The whole job: pictures + clip + prompt -> video").after_help(run))
        .subcommand(job(Task::Demo, "demo", "The whole job on random weights and drawn inputs, no files needed"))
        .subcommand(train)
        .subcommand(job(Task::Ttt, "ttt", "Adapt a spatial and a temporal LoRA to each other by test-time training"))
        .subcommand(job(Task::Sample, "sample", "Sample a video").visible_alias("generate"))
        .subcommand(resume_command())
        .subcommand(forward_command())
        .subcommand(init_weights_command())
        .subcommand(common(Command::new("info").about("Build, devices, libraries"), flags::PLAIN))
        .subcommand(
            Command::new("completions")
                .about("Print completions for a shell")
                .arg(Arg::new("shell").required(true).value_parser(clap::value_parser!(Shell))),
        )
}

const RUN_HELP: &str = "Example:\n  customttt run --base sd15 --motion-module v3_sd15_mm.ckpt.safetensors --subject teddy/ \
--subject-name \"teddy bear\" --motion guitar.mp4 --motion-prompt \"a man is playing guitar\" \
--prompt \"a teddy bear is playing guitar on the snow\" -o out";

fn job(task: Task, name: &'static str, about: &'static str) -> Command {
    common(Command::new(name).about(about), task.bit())
}

fn resume_command() -> Command {
    let run = Arg::new("run").value_name("RUN").required(true).value_parser(clap::value_parser!(PathBuf));
    let about = "Finish a run that was stopped: to the same bits as if it had not been";
    common(Command::new("resume").about(about).arg(run.help("Run folder")), flags::RESUME)
}

fn forward_command() -> Command {
    let path = |name: &'static str| Arg::new(name).long(name).value_parser(clap::value_parser!(PathBuf));
    let modules = PossibleValuesParser::new(["unet2d", "unet", "text", "vae-encode", "vae-decode", "clip"]);
    let switch = |name: &'static str| underscored(Arg::new(name).long(name).action(ArgAction::SetTrue), name);
    let command = Command::new("forward")
        .about("Run one module on tensors from a safetensors file")
        .arg(Arg::new("module").value_name("MODULE").required(true).value_parser(modules))
        .arg(path("clip").value_name("DIR").help("CLIPModel folder (module clip)"))
        .arg(path("in").value_name("FILE").help("Input tensors"))
        .arg(path("out").value_name("FILE").required(true).help("File for the output tensors"))
        .arg(
            Arg::new("prompt").long("prompt").value_name("TEXT").action(ArgAction::Append).help("Prompt (module text)"),
        )
        .arg(switch("bypass-motion").help("Leave out the motion modules"))
        .arg(switch("no-bypass-single-frame").help("Keep the motion modules for a single frame"));
    common(command, flags::FORWARD)
}

fn init_weights_command() -> Command {
    let choice = |name: &'static str, values: &'static [&'static str]| {
        Arg::new(name).long(name).value_parser(PossibleValuesParser::new(values)).default_value(values[0])
    };
    let out = Arg::new("out").value_name("OUT").required(true).value_parser(clap::value_parser!(PathBuf));
    let command = Command::new("init-weights")
        .about("Write random weights that load like real ones: OUT/base, OUT/motion, OUT/clip")
        .arg(out.help("Folder to write to"))
        .arg(choice("size", &["sd15", "small", "tiny"]).help("Size of the networks"))
        .arg(choice("dtype", &["f32", "f16"]).help("Storage"));
    common(command, flags::PLAIN)
}

/// Adds the flags of one set of commands and what every command takes.
fn common(command: Command, bit: u16) -> Command {
    let command = FLAGS.iter().filter(|f| f.on & bit != 0).fold(command, |command, flag| command.arg(arg(flag)));
    let command = command
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object on stdout"))
        .arg(Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue).help("Only errors"))
        .arg(Arg::new("verbose").long("verbose").short('v').action(ArgAction::Count).help("More detail"));
    if bit == flags::RESUME {
        return command;
    }
    let file = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
    let set = Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append);
    command.arg(file.help("Settings from a TOML file")).arg(set.help("Set any key of the config file"))
}

fn arg(flag: &'static Flag) -> Arg {
    let setting = settings::find(flag.keys[0]).expect("flags should name settings");
    let help = match setting.default {
        Some(default) if !default.is_empty() => format!("{} [default: {default}]", setting.help),
        _ => setting.help.to_string(),
    };
    let kind = setting.kind;
    let mut arg = Arg::new(flag.name)
        .long(flag.name)
        .value_name(kind.placeholder())
        .help(help)
        .help_heading(heading(setting.key))
        .allow_hyphen_values(!matches!(kind, Kind::Choice(_) | Kind::Switch | Kind::Path))
        .action(if kind.repeats() { ArgAction::Append } else { ArgAction::Set });
    arg = match kind {
        Kind::Choice(names) => arg.value_parser(PossibleValuesParser::new(names)),
        Kind::Switch => {
            let parse = move |text: &str| kind.parse(text);
            arg.num_args(0..=1).default_missing_value("on").value_parser(parse)
        }
        _ => arg.value_parser(move |text: &str| kind.parse(text)),
    };
    if let Some(short) = flag.short {
        arg = arg.short(short);
    }
    let arg = flag.aliases.iter().fold(arg, |arg, &alias| underscored(arg.alias(alias), alias));
    underscored(arg, flag.name)
}

/// Accepts underscores for hyphens.
fn underscored(arg: Arg, name: &'static str) -> Arg {
    if name.contains('-') { arg.alias(name.replace('-', "_")) } else { arg }
}

fn heading(key: &str) -> Option<&'static str> {
    Some(match key.split('.').next()? {
        "model" => "Model",
        "data" => "Data",
        "spatial" => "Spatial stage",
        "temporal" => "Temporal stage",
        "ttt" => "Test-time training",
        "sample" => "Sampling",
        "output" => "Output",
        _ => return None,
    })
}

/// The flags given, with their values.
fn given(m: &ArgMatches, bit: u16) -> Vec<(&'static Flag, Value)> {
    let value = |flag: &'static Flag| {
        let kind = settings::find(flag.keys[0])?.kind;
        match kind {
            Kind::Choice(_) => m.get_one::<String>(flag.name).map(|text| Value::Text(text.clone())),
            _ if kind.repeats() => {
                let each = |v: &Value| match v {
                    Value::Texts(texts) => texts.clone(),
                    _ => Vec::new(),
                };
                m.get_many::<Value>(flag.name).map(|all| Value::Texts(all.flat_map(each).collect()))
            }
            _ => m.get_one::<Value>(flag.name).cloned(),
        }
    };
    FLAGS.iter().filter(|f| f.on & bit != 0).filter_map(|flag| value(flag).map(|v| (flag, v))).collect()
}

fn forward(m: &ArgMatches) -> Forward {
    Forward {
        module: one(m, "module").expect("MODULE should be required"),
        clip: one(m, "clip"),
        input: one(m, "in"),
        output: one(m, "out").expect("--out should be required"),
        prompts: many(m, "prompt"),
        bypass_motion: m.get_flag("bypass-motion"),
        bypass_single_frame: !m.get_flag("no-bypass-single-frame"),
    }
}

fn init_weights(m: &ArgMatches) -> InitWeights {
    let text = |name| one(m, name).expect("it should have a default");
    InitWeights { size: text("size"), dtype: text("dtype"), out: one(m, "out").expect("OUT should be required") }
}

fn file_of(m: &ArgMatches) -> Option<PathBuf> {
    m.try_get_one::<PathBuf>("config").ok().flatten().cloned()
}

fn one<T: Clone + Send + Sync + 'static>(m: &ArgMatches, name: &str) -> Option<T> {
    m.get_one::<T>(name).cloned()
}

fn many(m: &ArgMatches, name: &str) -> Vec<String> {
    m.try_get_many::<String>(name).ok().flatten().into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Invocation, clap::Error> {
        parse(words.split(' ').map(OsString::from))
    }

    #[test]
    fn the_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn other_spellings_mean_the_same() {
        let ours = parse_words("x run --base b --motion-module m --cfg 7 --steps 3 --frames 4").unwrap();
        let theirs = parse_words(
            "x run --pretrained_model_name_or_path b --motion_module m --guidance-scale 7 --num_inference_steps 3 --L 4",
        )
        .unwrap();
        assert_eq!(format!("{:?}", ours.layers), format!("{:?}", theirs.layers));
    }

    #[test]
    fn one_flag_name_means_the_stage_of_its_command() {
        for (words, key) in [
            ("x train spatial --steps 3", "spatial.steps"),
            ("x train temporal --steps 3", "temporal.steps"),
            ("x ttt --steps 3", "ttt.steps"),
            ("x sample --steps 3", "sample.steps"),
            ("x run --steps 3", "sample.steps"),
        ] {
            assert_eq!(parse_words(words).unwrap().layers.flags[0].0.keys, [key], "{words}");
        }
    }

    #[test]
    fn unreadable_numbers_are_usage_errors_that_say_what_is_expected() {
        let error = parse_words("x run --steps many").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("a whole number"), "{error}");
    }

    #[test]
    fn prompts_keep_their_commas_and_repeat() {
        let words = ["x", "sample", "--prompt", "a, b", "--prompt", "c"].map(OsString::from);
        let flags = parse(words).unwrap().layers.flags;
        assert_eq!(flags[0].1, Value::Texts(vec!["a, b".into(), "c".into()]));
    }
}

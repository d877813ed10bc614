//! The settings of a job with their origins: flags over `--set` over the environment over the config file over the
//! preset over the defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config_file;
use super::flags::{FLAGS, Flag, PLAIN};
use super::init_weights::TABLES;
use super::kind::{Value, split_scale};
use super::layers;
use super::settings::{self, SETTINGS, Setting};
use crate::{Error, Result};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Default,
    Preset(String),
    File { file: PathBuf, line: usize, column: usize },
    Environment(String),
    Set,
    Flag(&'static str),
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Held {
    pub value: Value,
    pub origin: Origin,
}

/// What the user gave, before anything is checked.
#[derive(Debug, Default)]
pub struct Layers {
    pub file: Option<PathBuf>,
    /// `key=value` pairs of `--set`.
    pub set: Vec<String>,
    pub flags: Vec<(&'static Flag, Value)>,
}

/// One layer: values by key.
pub type Layer = Vec<(&'static Setting, Held)>;

/// All settings, resolved and within range.
#[derive(Clone, Debug)]
pub struct Config {
    values: BTreeMap<&'static str, Held>,
    /// Bit of the command whose flags name the settings in messages.
    command: u16,
}

impl Config {
    /// Puts the layers on top of each other and checks every value's range.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag, variable, or line and column of the file.
    pub fn resolve(
        given: &Layers,
        environment: impl Iterator<Item = (String, String)>,
        command: u16,
    ) -> Result<Config> {
        let here = Path::new("");
        let sizes: &[&str] = if command == PLAIN { &TABLES } else { &[] };
        let file = given.file.as_deref().map(|path| config_file::read(path, sizes)).transpose()?.unwrap_or_default();
        let environment = layers::environment(environment)?;
        let set = given.set.iter().map(|pair| layers::set(pair)).collect::<Result<Layer>>()?;
        let upper = [file, environment, set, layers::flags(&given.flags)];
        let preset = upper.iter().rev().flatten().find(|(s, _)| s.key == "preset");
        let preset = preset.map_or("paper".into(), |(_, held)| held.value.to_string());

        let mut config = Config { values: BTreeMap::new(), command };
        let lower = [layers::defaults(), layers::preset(&preset)];
        for (setting, held) in lower.into_iter().chain(upper).flatten() {
            let value = setting.kind.rooted(held.value, here);
            config.values.insert(setting.key, Held { value, origin: held.origin });
        }
        for setting in SETTINGS {
            if let Some(held) = config.values.get(setting.key) {
                setting.kind.check(&held.value).map_err(|detail| config.error(setting.key, detail))?;
            }
        }
        Ok(config)
    }

    /// The value of a setting, if it has one.
    pub fn get(&self, key: &str) -> Option<&Held> {
        debug_assert!(settings::find(key).is_some(), "{key} is no setting");
        self.values.get(key)
    }

    /// True if the user, not a default or a preset, gave the setting.
    pub fn given(&self, key: &str) -> bool {
        self.get(key).is_some_and(|held| !matches!(held.origin, Origin::Default | Origin::Preset(_)))
    }

    /// Replaces a value that the program itself determines.
    pub fn put(&mut self, key: &'static str, value: Value) {
        self.values.insert(key, Held { value, origin: Origin::Set });
    }

    /// A whole number that always has a value.
    pub fn count(&self, key: &str) -> usize {
        self.count_opt(key).unwrap_or_else(|| panic!("{key} should have a default"))
    }

    /// A whole number.
    pub fn count_opt(&self, key: &str) -> Option<usize> {
        match self.get(key)?.value {
            Value::Count(n) => Some(n as usize),
            _ => None,
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.count("seed") as u64
    }

    /// A number that always has a value.
    pub fn real(&self, key: &str) -> f64 {
        self.real_opt(key).unwrap_or_else(|| panic!("{key} should have a default"))
    }

    /// A number.
    pub fn real_opt(&self, key: &str) -> Option<f64> {
        match self.get(key)?.value {
            Value::Real(x) => Some(x),
            _ => None,
        }
    }

    /// A switch; off unless set.
    pub fn on(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Held { value: Value::Switch(true), .. }))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// True if the setting is this one of its choices.
    pub fn is(&self, key: &str, choice: &str) -> bool {
        self.text(key) == Some(choice)
    }

    /// A list of strings; empty unless set.
    pub fn texts(&self, key: &str) -> &[String] {
        match self.get(key) {
            Some(Held { value: Value::Texts(all), .. }) => all,
            _ => &[],
        }
    }

    /// A path.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A path the command cannot do without; `why` says what it is needed for.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag.
    pub fn required_path(&self, key: &str, why: &str) -> Result<PathBuf> {
        self.required(key, why).map(PathBuf::from)
    }

    /// A string the command cannot do without.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag.
    pub fn required(&self, key: &str, why: &str) -> Result<&str> {
        let setting = settings::find(key).expect("required settings should exist");
        let missing = || Error::config(self.name(key), format!("missing: {}; {why}", setting.help.to_lowercase()));
        self.text(key).filter(|text| !text.is_empty()).ok_or_else(missing)
    }

    /// A path with its scale.
    pub fn scaled_path(&self, key: &str) -> Option<(PathBuf, f32)> {
        self.text(key).map(|text| split_scale(text).expect("scales should have been checked"))
    }

    /// Paths with their scales.
    pub fn scaled_paths(&self, key: &str) -> Vec<(PathBuf, f32)> {
        self.texts(key).iter().map(|text| split_scale(text).expect("scales should have been checked")).collect()
    }

    /// Two numbers.
    pub fn betas(&self, key: &str) -> (f64, f64) {
        match &self.get(key).expect("betas should have a default").value {
            Value::Reals(all) => (all[0], all[1]),
            _ => unreachable!("betas should be numbers"),
        }
    }

    /// Block numbers, or `None` for all.
    pub fn blocks(&self, key: &str) -> Option<Vec<usize>> {
        match &self.get(key)?.value {
            Value::Counts(all) => Some(all.iter().map(|&n| n as usize).collect()),
            _ => None,
        }
    }

    /// What to call a setting in a message: as the user wrote it, else as this command's flag.
    pub fn name(&self, key: &str) -> String {
        match self.get(key).map(|held| &held.origin) {
            Some(Origin::Flag(name)) => format!("--{name}"),
            Some(Origin::Environment(variable)) => variable.clone(),
            Some(Origin::File { .. } | Origin::Set | Origin::Preset(_)) => key.into(),
            Some(Origin::Default) | None => {
                let flag = FLAGS.iter().find(|f| f.on & self.command != 0 && f.keys.contains(&key));
                flag.map_or(key.into(), |f| format!("--{}", f.name))
            }
        }
    }

    /// An error about a setting, with its place in the file if that is where it came from.
    pub fn error(&self, key: &str, detail: impl std::fmt::Display) -> Error {
        let place = match self.get(key).map(|held| &held.origin) {
            Some(Origin::File { file, line, column }) => {
                format!(" ({}, line {line}, column {column})", file.display())
            }
            _ => String::new(),
        };
        Error::config(self.name(key), format!("{detail}{place}"))
    }

    /// What the preset changed, for telling the user: (key, default, value).
    pub fn preset_changes(&self) -> Vec<(&'static str, &'static str, String)> {
        let changed = |s: &&Setting| matches!(self.get(s.key), Some(Held { origin: Origin::Preset(_), .. }));
        let row = |s: &'static Setting| (s.key, s.default.unwrap_or(""), self.values[s.key].value.to_string());
        SETTINGS.iter().filter(changed).map(row).collect()
    }

    /// All values in the table's order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Setting, Option<&Held>)> {
        SETTINGS.iter().map(|s| (s, self.values.get(s.key)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::RUN;
    use super::*;

    fn flag(name: &str) -> &'static Flag {
        FLAGS.iter().find(|f| f.name == name && f.on & RUN != 0).unwrap()
    }

    fn resolve(file: Option<&str>, env: &[(&str, &str)], set: &[&str], flags: &[(&str, Value)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        std::fs::write(&path, file.unwrap_or("")).unwrap();
        let layers = Layers {
            file: file.map(|_| path),
            set: set.iter().map(|s| s.to_string()).collect(),
            flags: flags.iter().map(|(n, v)| (flag(n), v.clone())).collect(),
        };
        let env: Vec<_> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Config::resolve(&layers, env.into_iter(), RUN)
    }

    #[test]
    fn each_layer_overrides_the_one_below() {
        let file = Some("preset = \"fast\"\n[spatial]\nsteps = 2\n");
        let env: &[_] = &[("CUSTOMTTT_SPATIAL__STEPS", "3")];
        let set: &[_] = &["spatial.steps=4"];
        let flags: &[_] = &[("spatial-steps", Value::Count(5))];
        assert_eq!(resolve(None, &[], &[], &[]).unwrap().count("spatial.steps"), 500);
        assert_eq!(resolve(Some("preset = \"fast\""), &[], &[], &[]).unwrap().count("spatial.steps"), 60);
        assert_eq!(resolve(file, &[], &[], &[]).unwrap().count("spatial.steps"), 2);
        assert_eq!(resolve(file, env, &[], &[]).unwrap().count("spatial.steps"), 3);
        assert_eq!(resolve(file, env, set, &[]).unwrap().count("spatial.steps"), 4);
        assert_eq!(resolve(file, env, set, flags).unwrap().count("spatial.steps"), 5);
        let paper = resolve(file, &[], &[], &[("preset", Value::Text("paper".into()))]).unwrap();
        assert_eq!(paper.count("temporal.steps"), 500, "a flag's preset should beat the file's");
    }

    #[test]
    fn a_specific_flag_beats_a_general_one_in_any_order() {
        for swapped in [false, true] {
            let mut flags = vec![("rank", Value::Count(8)), ("temporal-rank", Value::Count(4))];
            if swapped {
                flags.reverse();
            }
            let config = resolve(None, &[], &[], &flags).unwrap();
            assert_eq!((config.count("spatial.rank"), config.count("temporal.rank")), (8, 4));
        }
    }

    #[test]
    fn errors_say_where_the_value_came_from() {
        let message = |r: Result<Config>| r.unwrap_err().to_string();
        let file = message(resolve(Some("[spatial]\n  rank = 0\n"), &[], &[], &[]));
        assert!(file.starts_with("spatial.rank: 0 is less than 1 (") && file.contains("line 2, column 10"), "{file}");
        let flag = message(resolve(None, &[], &[], &[("rank", Value::Count(0))]));
        assert_eq!(flag, "--rank: 0 is less than 1");
        let env = message(resolve(None, &[("CUSTOMTTT_SPATIAL__RANK", "0")], &[], &[]));
        assert_eq!(env, "CUSTOMTTT_SPATIAL__RANK: 0 is less than 1");
        let unknown = message(resolve(None, &[("CUSTOMTTT_SPATIAL__RNK", "1")], &[], &[]));
        assert!(unknown.contains("did you mean spatial.rank?"), "{unknown}");
        let set = message(resolve(None, &[], &["spatial.rank=x"], &[]));
        assert_eq!(set, "spatial.rank: expected a whole number, found \"x\"");
    }

    #[test]
    fn environment_variables_of_other_things_are_left_alone() {
        assert!(resolve(None, &[("CUSTOMTTT_REQUIRE_CUDA", "1"), ("PATH", "/bin")], &[], &[]).is_ok());
        assert_eq!(resolve(None, &[("CUSTOMTTT_SEED", "9")], &[], &[]).unwrap().seed(), 9);
    }

    #[test]
    fn paths_in_a_file_start_from_its_folder() {
        let config = resolve(Some("[model]\nbase = \"weights/base\"\n"), &[], &[], &[]).unwrap();
        let base = config.path("model.base").unwrap();
        assert!(base.is_absolute() && base.ends_with("weights/base"));
        assert!(!base.starts_with(std::env::current_dir().unwrap()));
    }
}

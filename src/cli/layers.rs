//! The layers of a configuration other than the file: defaults, presets, environment, `--set` and flags.

use super::config::{Held, Layer, Origin};
use super::flags::Flag;
use super::kind::{Kind, Value};
use super::settings::{self, SETTINGS, Setting};
use crate::{Error, Result};

/// The defaults.
pub fn defaults() -> Layer {
    let entry = |s: &'static Setting| {
        let value = s.kind.parse(s.default?).expect("defaults should be valid");
        Some((s, Held { value, origin: Origin::Default }))
    };
    SETTINGS.iter().filter_map(entry).collect()
}

/// What a preset changes.
pub fn preset(name: &str) -> Layer {
    let rows = if name == "fast" { settings::FAST } else { &[] };
    let entry = |&(key, text): &(&str, &str)| {
        let setting = settings::find(key).expect("presets should name settings");
        let value = setting.kind.parse(text).expect("presets should be valid");
        (setting, Held { value, origin: Origin::Preset(name.into()) })
    };
    rows.iter().map(entry).collect()
}

/// The flags. Those that write several settings come first, so that the specific ones win.
pub fn flags(given: &[(&'static Flag, Value)]) -> Layer {
    let mut flags: Vec<_> = given.iter().collect();
    flags.sort_by_key(|(flag, _)| std::cmp::Reverse(flag.keys.len()));
    let entries = |(flag, value): &'_ &(&'static Flag, Value)| {
        let (flag, value) = (*flag, value.clone());
        flag.keys.iter().map(move |key| {
            let setting = settings::find(key).expect("flags should name settings");
            (setting, Held { value: value.clone(), origin: Origin::Flag(flag.name) })
        })
    };
    flags.iter().flat_map(entries).collect()
}

/// A `key=value` pair of `--set`.
///
/// # Errors
/// [`Error::Config`] for what is no pair, no setting or no such value.
pub fn set(pair: &str) -> Result<(&'static Setting, Held)> {
    let Some((key, text)) = pair.split_once('=') else {
        return Err(Error::config("--set", format!("{pair:?} is not KEY=VALUE")));
    };
    let setting = find_or_suggest(key.trim(), "--set")?;
    let value = parse(setting, text.trim(), setting.key)?;
    Ok((setting, Held { value, origin: Origin::Set }))
}

/// The environment: `CUSTOMTTT_SPATIAL__STEPS=10` is `spatial.steps = 10`. Variables without `__` count only if they
/// name a setting.
///
/// # Errors
/// [`Error::Config`] naming the variable.
pub fn environment(environment: impl Iterator<Item = (String, String)>) -> Result<Layer> {
    let mut layer = Layer::new();
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix("CUSTOMTTT_") else { continue };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        if !key.contains('.') && settings::find(&key).is_none() {
            continue;
        }
        let setting = find_or_suggest(&key, &variable)?;
        let value = parse(setting, &text, &variable)?;
        layer.push((setting, Held { value, origin: Origin::Environment(variable) }));
    }
    Ok(layer)
}

/// A list may be given whole, separated by newlines or, where the kind says so, by commas.
fn parse(setting: &'static Setting, text: &str, name: &str) -> Result<Value> {
    let fail = |expected| Error::config(name, format!("expected {expected}, found {text:?}"));
    if matches!(setting.kind, Kind::Prompts | Kind::ScaledPaths) {
        return Ok(Value::Texts(text.lines().map(String::from).collect()));
    }
    setting.kind.parse(text).map_err(fail)
}

fn find_or_suggest(key: &str, name: &str) -> Result<&'static Setting> {
    settings::find(key).ok_or_else(|| {
        let near = settings::nearest(key, settings::names());
        let hint = near.map_or(String::new(), |n| format!("; did you mean {n}?"));
        Error::config(name, format!("no setting is called {key:?}{hint}"))
    })
}

//! Kinds of setting: how each is written on the command line, in the environment and in TOML, and what it may be.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

/// The value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Count(u64),
    Real(f64),
    Text(String),
    Counts(Vec<u64>),
    Reals(Vec<f64>),
    Texts(Vec<String>),
}

/// What a setting holds.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Switch,
    /// A whole number between two bounds.
    Count(u64, u64),
    /// A number for which the function holds; the text says which those are.
    Real(fn(f64) -> bool, &'static str),
    /// A whole number, or `random`.
    Seed,
    Text,
    /// Strings, repeated on the command line.
    Prompts,
    /// Strings, separated by commas on the command line.
    Texts,
    Choice(&'static [&'static str]),
    Path,
    /// `PATH` or `PATH:SCALE`.
    ScaledPath,
    ScaledPaths,
    /// Two numbers in [0, 1).
    Betas,
    /// Block numbers, or `all`.
    Blocks,
}

impl Kind {
    /// Reads a command-line or environment spelling. `Err` says what was expected.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
        match self {
            Kind::Switch => match text {
                "on" | "true" | "yes" | "1" => Ok(Value::Switch(true)),
                "off" | "false" | "no" | "0" => Ok(Value::Switch(false)),
                _ => Err(self.expected()),
            },
            Kind::Seed if text == "random" => Ok(Value::Count(random_seed())),
            Kind::Count(..) | Kind::Seed => text.parse().map(Value::Count).map_err(|_| self.expected()),
            Kind::Real(..) => text.parse().map(Value::Real).map_err(|_| self.expected()),
            Kind::Text | Kind::Path | Kind::ScaledPath => Ok(Value::Text(text.into())),
            Kind::Choice(names) if names.contains(&text) => Ok(Value::Text(text.into())),
            Kind::Choice(_) => Err(self.expected()),
            Kind::Texts => Ok(Value::Texts(items().map(String::from).collect())),
            Kind::Prompts | Kind::ScaledPaths => Ok(Value::Texts(vec![text.into()])),
            Kind::Betas => {
                let all: Result<_, _> = items().map(str::parse).collect();
                all.map(Value::Reals).map_err(|_| self.expected())
            }
            Kind::Blocks if text == "all" => Ok(Value::Text("all".into())),
            Kind::Blocks => {
                let all: Result<_, _> = items().map(str::parse).collect();
                all.map(Value::Counts).map_err(|_| self.expected())
            }
        }
    }

    /// Reads a value of a TOML file. `Err` says what was expected.
    pub fn read(self, value: &DeValue) -> Result<Value, String> {
        let expected = || format!("expected {}, found {}", self.expected(), article(value.type_str()));
        let count = |v: &DeValue| {
            let number = v.as_integer()?;
            u64::from_str_radix(number.as_str(), number.radix()).ok()
        };
        let real = |v: &DeValue| match v {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            other => count(other).map(|n| n as f64),
        };
        let found = match (self, value) {
            (Kind::Switch, DeValue::Boolean(b)) => Some(Value::Switch(*b)),
            (Kind::Count(..) | Kind::Seed, DeValue::Integer(_)) => count(value).map(Value::Count),
            (Kind::Real(..), _) => real(value).map(Value::Real),
            (Kind::Betas, DeValue::Array(all)) => {
                all.iter().map(|v| real(v.get_ref())).collect::<Option<_>>().map(Value::Reals)
            }
            (Kind::Blocks, DeValue::Array(all)) => {
                all.iter().map(|v| count(v.get_ref())).collect::<Option<_>>().map(Value::Counts)
            }
            (Kind::Texts | Kind::Prompts | Kind::ScaledPaths, DeValue::Array(all)) => {
                let text = |v: &DeValue| v.as_str().map(String::from);
                all.iter().map(|v| text(v.get_ref())).collect::<Option<_>>().map(Value::Texts)
            }
            (Kind::Count(..) | Kind::Switch, _) => None,
            (_, DeValue::String(text)) => return self.parse(text).map_err(|e| format!("expected {e}, found {text:?}")),
            _ => None,
        };
        found.ok_or_else(expected)
    }

    /// Checks the range. `Err` says what is wrong.
    pub fn check(self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Kind::Count(least, _), Value::Count(n)) if *n < least => Err(format!("{n} is less than {least}")),
            (Kind::Count(_, most), Value::Count(n)) if *n > most => Err(format!("{n} is more than {most}")),
            (Kind::Real(holds, what), Value::Real(x)) if !holds(*x) => Err(format!("{x} is not {what}")),
            (Kind::Betas, Value::Reals(all)) if all.len() != 2 || !all.iter().all(|b| (0.0..1.0).contains(b)) => {
                Err(format!("{all:?} is not two numbers in [0, 1), such as 0.9,0.99"))
            }
            (Kind::Blocks, Value::Counts(all)) if all.is_empty() => Err("names no block".into()),
            (Kind::Texts | Kind::Prompts, Value::Texts(all)) if all.is_empty() => Err("is an empty list".into()),
            (Kind::ScaledPath, Value::Text(text)) => split_scale(text).map(drop),
            (Kind::ScaledPaths, Value::Texts(all)) => all.iter().try_for_each(|text| split_scale(text).map(drop)),
            _ => Ok(()),
        }
    }

    /// The value with relative paths resolved from `folder`.
    pub fn rooted(self, value: Value, folder: &Path) -> Value {
        let absolute = |path: &str| {
            let joined = folder.join(path);
            std::path::absolute(&joined).unwrap_or(joined).to_string_lossy().into_owned()
        };
        let scaled = |text: &str| match text.rsplit_once(':') {
            Some((path, scale)) if scale.parse::<f32>().is_ok() => format!("{}:{scale}", absolute(path)),
            _ => absolute(text),
        };
        match (self, value) {
            (Kind::Path, Value::Text(text)) if !text.is_empty() => Value::Text(absolute(&text)),
            (Kind::ScaledPath, Value::Text(text)) => Value::Text(scaled(&text)),
            (Kind::ScaledPaths, Value::Texts(all)) => Value::Texts(all.iter().map(|t| scaled(t)).collect()),
            (_, value) => value,
        }
    }

    fn expected(self) -> String {
        match self {
            Kind::Switch => "on or off".into(),
            Kind::Count(..) => "a whole number".into(),
            Kind::Seed => "a whole number, or random".into(),
            Kind::Real(..) => "a number".into(),
            Kind::Text => "a string".into(),
            Kind::Texts | Kind::Prompts => "a list of strings".into(),
            Kind::Choice(names) => format!("one of {}", names.join(", ")),
            Kind::Path => "a path".into(),
            Kind::ScaledPath => "a path, or PATH:SCALE".into(),
            Kind::ScaledPaths => "a list of paths, or of PATH:SCALE".into(),
            Kind::Betas => "two numbers, such as 0.9,0.99".into(),
            Kind::Blocks => "block numbers such as 2,6, or all".into(),
        }
    }

    /// True if a flag of this kind may be given several times.
    pub fn repeats(self) -> bool {
        matches!(self, Kind::Prompts | Kind::ScaledPaths)
    }

    /// The placeholder in help texts.
    pub fn placeholder(self) -> &'static str {
        match self {
            Kind::Switch => "on|off",
            Kind::Count(..) | Kind::Seed => "N",
            Kind::Real(..) => "X",
            Kind::Text | Kind::Prompts => "TEXT",
            Kind::Texts => "TEXT,..",
            Kind::Choice(_) => "NAME",
            Kind::Path => "PATH",
            Kind::ScaledPath | Kind::ScaledPaths => "PATH[:SCALE]",
            Kind::Betas => "X,X",
            Kind::Blocks => "N,..|all",
        }
    }
}

/// Splits `PATH:SCALE`; without a scale it is 1.
pub fn split_scale(text: &str) -> Result<(PathBuf, f32), String> {
    match text.rsplit_once(':') {
        // A backslash or slash after the colon is a Windows drive, not a scale.
        Some((path, scale)) if !scale.contains(['/', '\\']) && !scale.is_empty() => match scale.parse::<f32>() {
            Ok(scale) if scale.is_finite() => Ok((path.into(), scale)),
            _ => Err(format!("{scale:?} is not a scale: write PATH or PATH:NUMBER")),
        },
        _ => Ok((text.into(), 1.0)),
    }
}

fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// Below 2^53, so that it survives every reader of JSON.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now()) >> 11
}

impl Value {
    /// As TOML.
    pub fn to_toml(&self) -> toml::Value {
        match self {
            Value::Switch(b) => (*b).into(),
            Value::Count(n) => i64::try_from(*n).map_or_else(|_| n.to_string().into(), toml::Value::Integer),
            Value::Real(x) => (*x).into(),
            Value::Text(t) => t.as_str().into(),
            Value::Counts(all) => all.iter().map(|&n| n as i64).collect::<Vec<_>>().into(),
            Value::Reals(all) => all.clone().into(),
            Value::Texts(all) => all.clone().into(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        fn list<T: std::fmt::Display>(all: &[T]) -> String {
            all.iter().map(T::to_string).collect::<Vec<_>>().join(",")
        }
        match self {
            Value::Switch(b) => f.write_str(if *b { "on" } else { "off" }),
            Value::Count(n) => write!(f, "{n}"),
            Value::Real(x) => write!(f, "{x}"),
            Value::Text(t) => f.write_str(t),
            Value::Counts(all) => f.write_str(&list(all)),
            Value::Reals(all) => f.write_str(&list(all)),
            Value::Texts(all) => f.write_str(&list(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_split_off_and_paths_kept() {
        assert_eq!(split_scale("a/b.safetensors").unwrap(), ("a/b.safetensors".into(), 1.0));
        assert_eq!(split_scale("a/b.safetensors:0.5").unwrap(), ("a/b.safetensors".into(), 0.5));
        assert_eq!(split_scale(r"C:\b.safetensors").unwrap().1, 1.0);
        assert!(split_scale("a:b").unwrap_err().contains("not a scale"));
    }

    #[test]
    fn every_kind_survives_the_trip_through_toml() {
        let trips = [
            (Kind::Switch, "off"),
            (Kind::Count(1, 9), "7"),
            (Kind::Seed, "18446744073709551615"),
            (Kind::Real(|_| true, ""), "1e-5"),
            (Kind::Text, "a \"quoted\" \u{1F9F8} text"),
            (Kind::Texts, "a man,a dog"),
            (Kind::Betas, "0.9,0.99"),
            (Kind::Blocks, "2,6"),
            (Kind::Blocks, "all"),
            (Kind::Choice(&["on", "off"]), "on"),
        ];
        for (kind, text) in trips {
            let value = kind.parse(text).unwrap();
            let written = format!("v = {}", value.to_toml());
            let table = toml::de::DeTable::parse(&written).unwrap();
            let read = kind.read(table.get_ref().values().next().unwrap().get_ref()).unwrap();
            assert_eq!(read, value, "{kind:?} {text}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        assert!(Kind::Count(1, 32).check(&Value::Count(0)).unwrap_err().contains("less than 1"));
        assert!(Kind::Count(1, 32).check(&Value::Count(33)).unwrap_err().contains("more than 32"));
        assert!(Kind::Betas.check(&Value::Reals(vec![0.9, 1.0])).is_err());
        assert!(Kind::Betas.check(&Value::Reals(vec![0.9])).is_err());
    }
}

//! The TOML config file: read with the place of every value, written with what every key means.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::config::{Config, Held, Layer, Origin};
use super::settings::{self, SETTINGS};
use crate::{Error, Result};

/// Reads a config file; relative paths in it start from its folder.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Config`] with line and column for broken TOML, a key that no setting
/// has (with the nearest one) or a value of the wrong type.
///
/// Top-level tables of the names `skip` are somebody else's.
pub fn read(path: &Path, skip: &[&str]) -> Result<Layer> {
    let text = std::fs::read(path).map_err(Error::io(path, "read the config file"))?;
    let text = String::from_utf8(text).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        Error::config(path.display().to_string(), format!("is not UTF-8 text (byte {valid})"))
    })?;
    let file = File { path: path.into(), folder: path.parent().unwrap_or(Path::new("")).into(), text: &text };
    let table = DeTable::parse(&text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        file.error(at, e.message())
    })?;
    let mut layer = Layer::new();
    for (name, value) in table.get_ref().iter().filter(|(name, _)| !skip.contains(&&**name.get_ref())) {
        file.entry(name.get_ref(), name.span().start, value, &mut layer)?;
    }
    Ok(layer)
}

struct File<'t> {
    path: PathBuf,
    folder: PathBuf,
    text: &'t str,
}

impl File<'_> {
    fn walk(&self, prefix: &str, table: &DeTable, layer: &mut Layer) -> Result<()> {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            self.entry(&key, name.span().start, value, layer)?;
        }
        Ok(())
    }

    fn entry(&self, key: &str, at: usize, value: &Spanned<DeValue>, layer: &mut Layer) -> Result<()> {
        let is_table = SETTINGS.iter().any(|s| s.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
        match (value.get_ref(), settings::find(key)) {
            (_, Some(setting)) => {
                let start = value.span().start;
                let read = setting.kind.read(value.get_ref()).map_err(|e| self.error(start, &format!("{key}: {e}")))?;
                let (line, column) = self.place(start);
                let origin = Origin::File { file: self.path.clone(), line, column };
                layer.push((setting, Held { value: setting.kind.rooted(read, &self.folder), origin }));
                Ok(())
            }
            (DeValue::Table(inner), None) if is_table => self.walk(key, inner, layer),
            (_, None) if is_table => Err(self.error(at, &format!("{key}: expected a table"))),
            (_, None) => {
                let near = settings::nearest(key, settings::names());
                let hint = near.map_or(String::new(), |n| format!("; did you mean {n}?"));
                Err(self.error(at, &format!("unknown key {key}{hint}")))
            }
        }
    }

    /// Line and column of a byte, both from 1; columns count characters.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn error(&self, at: usize, detail: &str) -> Error {
        let (line, column) = self.place(at);
        let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
        Error::config(format!("{}, line {line}, column {column}", self.path.display()), detail)
    }
}

/// The whole configuration as a config file that gives it back: every key with its meaning; unset ones as comments.
pub fn render(config: &Config) -> String {
    let mut text = String::from("# The resolved settings of this run. `customttt resume` reads them.\n");
    let mut table = "";
    for (setting, held) in config.entries() {
        let (place, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if place != table {
            text += &format!("\n[{place}]\n");
            table = place;
        }
        match held {
            Some(held) => text += &format!("{name} = {}  # {}\n", held.value.to_toml(), setting.help),
            None => text += &format!("# {name}: {}\n", setting.help),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::config::Layers;
    use super::super::flags::RUN;
    use super::*;

    fn error_of(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        std::fs::write(&path, text).unwrap();
        read(&path, &[]).unwrap_err().to_string().rsplit_once("job.toml").unwrap().1.into()
    }

    #[test]
    fn mistakes_are_placed_and_near_names_offered() {
        assert_eq!(
            error_of("[spatial]\nsteps = 3\n stepz = 4\n"),
            ", line 3, column 2: unknown key spatial.stepz; did you mean spatial.steps?"
        );
        assert_eq!(
            error_of("[spatial]\nsteps = \"many\"\n"),
            ", line 2, column 9: spatial.steps: expected a whole number, found a string"
        );
        assert_eq!(error_of("spatial = 3\n"), ", line 1, column 1: spatial: expected a table");
        assert_eq!(
            error_of("[data]\nfit = \"stretch\"\n"),
            ", line 2, column 7: data.fit: expected one of crop, letterbox, found \"stretch\""
        );
        assert!(error_of("[spatial\nsteps = 3\n").starts_with(", line 1, column"));
        assert!(error_of("seed = 1\nseed = 2\n").starts_with(", line 2, column 1"));
        assert!(error_of("[spatail]\nsteps = 3\n").contains("unknown key spatail; did you mean spatial"));
    }

    #[test]
    fn a_rendered_configuration_reads_back_the_same() {
        let flags = [("subject-name", "teddy \"bear\""), ("prompt", "one, two"), ("blocks", "all"), ("seed", "7")];
        let flags = flags.map(|(name, text)| {
            let flag = super::super::flags::FLAGS.iter().find(|f| f.name == name && f.on & RUN != 0).unwrap();
            (flag, settings::find(flag.keys[0]).unwrap().kind.parse(text).unwrap())
        });
        let layers = Layers { flags: flags.to_vec(), ..Layers::default() };
        let config = Config::resolve(&layers, std::iter::empty(), RUN).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, render(&config)).unwrap();
        let layers = Layers { file: Some(path), ..Layers::default() };
        let again = Config::resolve(&layers, std::iter::empty(), RUN).unwrap();
        for ((setting, a), (_, b)) in config.entries().zip(again.entries()) {
            assert_eq!(a.map(|h| &h.value), b.map(|h| &h.value), "{}", setting.key);
        }
    }
}

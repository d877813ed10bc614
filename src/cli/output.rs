//! What leaves the program: results on stdout, errors on stderr. A reader that has left is not an error.

use std::io::{self, ErrorKind, Write};

use serde_json::{Value as Json, json};

use crate::{Error, Result};

/// Writes a result: the JSON object on one line, or the text.
///
/// # Errors
/// [`Error::Io`] if stdout cannot be written to, unless its reader has left.
pub fn result(as_json: bool, object: &Json, text: impl FnOnce() -> String) -> Result<()> {
    let line = if as_json { object.to_string() + "\n" } else { text() };
    bytes(line.as_bytes())
}

/// Writes to stdout.
///
/// # Errors
/// As [`result`].
pub fn bytes(data: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("stdout", "write")(e)),
        _ => Ok(()),
    }
}

/// One line on stderr and, where one exists, the way out; with `--json` also an object on stdout.
pub fn error(error: &Error, as_json: bool) {
    // A job that stops when told to has not failed.
    let what = if matches!(error, Error::Cancelled { .. }) { "" } else { "error: " };
    let mut line = format!("{what}{}\n", one_line(&error.to_string()));
    if let Some(hint) = hint(error) {
        line += &format!("hint: {hint}\n");
    }
    let _ = io::stderr().write_all(line.as_bytes());
    if as_json {
        let object = json!({ "error": error.to_string(), "exit_code": error.exit_code() });
        let _ = bytes((object.to_string() + "\n").as_bytes());
    }
}

/// A bug: what happened, and what to do about it.
pub fn panic(text: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let line = format!(
        "error: internal error: {}\nhint: this is a bug in customttt {version}; please report it with the command line \
         and the output of `customttt info`\n",
        one_line(text)
    );
    let _ = io::stderr().write_all(line.as_bytes());
}

fn hint(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Device { .. } => "run with --device cpu",
        Error::NonFinite { .. } => "lower the learning rate, or check the weights; the last good LoRA is kept",
        Error::Shape { .. } | Error::MissingGradient { .. } => {
            "this is a bug; please report it with the command line and the output of `customttt info`"
        }
        _ => return None,
    })
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

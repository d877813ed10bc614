//! The one error type of the crate. Every message names what was asked, what was found and, where one
//! exists, the way out. [`Error::exit_code`] maps each variant to the command line's exit status.

use std::path::{Path, PathBuf};

/// Result with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Operand shapes an operation cannot work on.
    #[error("{op}: {detail}")]
    Shape { op: &'static str, detail: String },

    /// A setting that is out of range or contradicts another; `key` is its flag or config key.
    #[error("{key}: {detail}")]
    Config { key: String, detail: String },

    /// Input data: picture, clip, prompt or draws file.
    #[error("{}: {detail}", path.display())]
    Input { path: PathBuf, detail: String },

    /// Weights, LoRA or tokenizer files.
    #[error("{}: {detail}", path.display())]
    Model { path: PathBuf, detail: String },

    /// The requested device does not exist, or cannot be used.
    #[error("device {device}: {detail}")]
    Device { device: String, detail: String },

    /// An allocation failed.
    #[error("out of memory: {what} needs {bytes} bytes; {remedy}")]
    Memory { what: String, bytes: usize, remedy: String },

    /// A NaN or infinity where a number was needed.
    #[error("non-finite {what} at {stage} step {step}{}", tensor.as_ref().map(|t| format!(", first in {t}")).unwrap_or_default())]
    NonFinite { what: &'static str, stage: String, step: usize, tensor: Option<String> },

    /// A failed file operation.
    #[error("{}: {verb}: {source}", path.display())]
    Io { path: PathBuf, verb: &'static str, source: std::io::Error },

    /// Trainable tensors that received no gradient.
    #[error("no gradient reached {} of the trainable tensors: {}", names.len(), abridged(names))]
    MissingGradient { names: Vec<String> },

    /// A numerical check did not hold.
    #[error("check failed: {detail}")]
    Check { detail: String },

    /// Stopped on request; the state reached so far is saved and the run can be resumed.
    #[error("stopped at {stage} step {step}; state saved")]
    Cancelled { stage: String, step: usize },
}

impl Error {
    pub(crate) fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Error::Shape { op, detail: detail.into() }
    }
    pub(crate) fn config(key: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Config { key: key.into(), detail: detail.into() }
    }
    pub(crate) fn input(path: impl AsRef<Path>, detail: impl Into<String>) -> Self {
        Error::Input { path: path.as_ref().into(), detail: detail.into() }
    }
    pub(crate) fn model(path: impl AsRef<Path>, detail: impl Into<String>) -> Self {
        Error::Model { path: path.as_ref().into(), detail: detail.into() }
    }
    /// Adapter for `map_err`: `File::open(p).map_err(Error::io(p, "open"))`.
    pub(crate) fn io(path: impl AsRef<Path>, verb: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, verb, source }
    }

    /// The process exit status for this error: 3 config, 4 input data, 5 model file, 6 device, 7 memory,
    /// 8 non-finite, 9 I/O, 10 a check failed, 75 stopped early, 1 for what only a bug can cause.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Shape { .. } | Error::MissingGradient { .. } => 1,
            Error::Config { .. } => 3,
            Error::Input { .. } => 4,
            Error::Model { .. } => 5,
            Error::Device { .. } => 6,
            Error::Memory { .. } => 7,
            Error::NonFinite { .. } => 8,
            Error::Io { .. } => 9,
            Error::Check { .. } => 10,
            Error::Cancelled { .. } => 75,
        }
    }
}

/// The first few of a long list of names, with the count of the rest.
pub(crate) fn abridged(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

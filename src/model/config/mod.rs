//! The `config.json` of each component as diffusers and transformers write it, with their defaults. Keys that
//! change nothing here are let pass; keys that ask for another network are refused by name.

mod clip;
mod motion;
mod unet;
mod vae;

pub use clip::{Activation, ClipConfig, TextConfig, VisionConfig};
pub use motion::{MotionConfig, MotionNorm};
pub use unet::{PerBlock, UNetConfig};
pub use vae::VaeConfig;

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Refuses other values of keys that have one possible value here; an absent or null key is taken as that.
fn fixed(path: &Path, other: &Map<String, Value>, expected: &[(&str, Value)]) -> Result<()> {
    for (key, only) in expected {
        let value = other.get(*key).unwrap_or(&Value::Null);
        let same = match (value.as_f64(), only.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => value == only,
        };
        if !value.is_null() && !same {
            return Err(Error::model(path, format!("has {key} = {value}; only {only} is supported")));
        }
    }
    Ok(())
}

/// Refuses sizes of zero, and absurd ones.
fn positive(path: &Path, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 24) {
        Some((key, size)) => Err(Error::model(path, format!("{key} = {size} is out of range"))),
        None => Ok(()),
    }
}

/// Refuses a width that cannot be cut into equal parts.
fn divides(path: &Path, key: &str, parts: usize, whole: usize) -> Result<()> {
    if parts == 0 || whole == 0 || whole > 1 << 24 || !whole.is_multiple_of(parts) {
        return Err(Error::model(path, format!("{key} = {parts} does not divide a width of {whole}")));
    }
    Ok(())
}

/// Refuses what cannot be the epsilon of a norm.
fn epsilon(path: &Path, key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(Error::model(path, format!("{key} = {value}"))) }
}

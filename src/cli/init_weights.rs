//! `init-weights`: random models of a named size, or of sizes from a file.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::invocation::{InitWeights, Invocation};
use super::output;
use super::settings::nearest;
use crate::data::init::{Folders, Parameters, Recipe, write_models};
use crate::{DType, Error, Result};

/// Tables of a `--config` file that hold sizes, each with the keys of the model's `config.json`.
pub const TABLES: [&str; 5] = ["unet", "vae", "text", "motion", "clip"];

/// Runs the command.
///
/// # Errors
/// [`Error::Config`] for sizes that cannot be, [`Error::Io`].
pub fn run(invocation: &Invocation, args: &InitWeights, config: &Config) -> Result<()> {
    let dtype = if args.dtype == "f16" { DType::F16 } else { DType::F32 };
    let made = write(&args.out, &args.size, invocation.layers.file.as_deref(), config.seed(), dtype)?;
    let object = json!({
        "base": made.base, "motion": made.motion, "clip": made.clip,
        "size": args.size, "dtype": args.dtype, "seed": config.seed(),
    });
    let lines = || [&made.base, &made.motion, &made.clip].map(|p| format!("{}\n", p.display())).concat();
    output::result(invocation.json, &object, lines)
}

/// Writes the models.
///
/// # Errors
/// As [`run`].
pub fn write(out: &Path, size: &str, sizes: Option<&Path>, seed: u64, dtype: DType) -> Result<Folders> {
    let mut recipe = Recipe::named(size).expect("sizes should have been checked");
    if let Some(path) = sizes {
        change(&mut recipe, path)?;
    }
    recipe.validate()?;
    std::fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    write_models(out, &recipe, &Parameters::of(&recipe)?, seed, dtype)
}

/// Changes a recipe by the tables of a file.
fn change(recipe: &mut Recipe, path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let fail = |detail: String| Error::config(path.display().to_string(), detail);
    let tables: Map<String, Json> = toml::from_str(&text).map_err(|e| fail(e.message().to_string()))?;
    for table in TABLES {
        let Some(Json::Object(changes)) = tables.get(table) else { continue };
        let changed = match table {
            "unet" => overlay(&mut recipe.unet, changes),
            "vae" => overlay(&mut recipe.vae, changes),
            "text" => overlay(&mut recipe.text, changes),
            "motion" => overlay(&mut recipe.motion, changes),
            _ => overlay(&mut recipe.clip, changes),
        };
        changed.map_err(|detail| fail(format!("[{table}] {detail}")))?;
    }
    Ok(())
}

/// Replaces keys of a configuration; tables in it are replaced key by key.
fn overlay<C: Serialize + DeserializeOwned>(config: &mut C, changes: &Map<String, Json>) -> Result<(), String> {
    fn merge(into: &mut Map<String, Json>, changes: &Map<String, Json>) -> Result<(), String> {
        for (key, value) in changes {
            let Some(old) = into.get_mut(key) else {
                let near = nearest(key, into.keys().map(String::as_str));
                let hint = near.map_or(String::new(), |n| format!("; did you mean {n}?"));
                return Err(format!("unknown key {key}{hint}"));
            };
            match (old, value) {
                (Json::Object(old), Json::Object(new)) => merge(old, new)?,
                (old, new) => *old = new.clone(),
            }
        }
        Ok(())
    }
    let Json::Object(mut all) = serde_json::to_value(&*config).map_err(|e| e.to_string())? else {
        return Err("is no table".into());
    };
    merge(&mut all, changes)?;
    *config = serde_json::from_value(Json::Object(all)).map_err(|e| e.to_string())?;
    Ok(())
}

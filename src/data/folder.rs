//! A model folder as diffusers writes it: one folder for each component, with its configuration and weights.

use std::collections::BTreeSet;
use std::path::{Component as PathPart, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::names;
use super::tokenizer::Tokenizer;
use super::{Checkpoint, motion};
use crate::model::config::{ClipConfig, TextConfig, UNetConfig, VaeConfig};
use crate::{Error, Result};

pub use motion::Motion;

const DIFFUSERS: &str = "diffusion_pytorch_model";
const TRANSFORMERS: &str = "model";

/// A component: its configuration, and its weights under the model's names.
#[derive(Debug)]
pub struct Component<C> {
    pub config: C,
    pub weights: Checkpoint,
    /// Which of several files was taken, where that is worth a line.
    pub note: Option<String>,
}

/// A Stable Diffusion 1.5 folder. Components are opened when asked for, so a missing one matters only then.
#[derive(Clone, Debug)]
pub struct Base {
    dir: PathBuf,
    variant: Option<String>,
}

impl Base {
    /// Names a folder.
    ///
    /// # Errors
    /// [`Error::Model`] if it is no folder, saying what it is instead.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if dir.is_dir() {
            return Ok(Base { dir: dir.into(), variant: None });
        }
        if !dir.exists() {
            return Err(Error::model(dir, "does not exist; a Stable Diffusion 1.5 model folder is needed"));
        }
        let family = Checkpoint::open(dir)?.family();
        Err(Error::model(dir, format!("is a file, not a model folder: {family}")))
    }

    /// Prefers weights of this variant, e.g. `fp16` or `non_ema`.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The denoiser without motion modules.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, malformed or not SD1.5's.
    pub fn unet(&self) -> Result<Component<UNetConfig>> {
        self.component("unet", DIFFUSERS, UNetConfig::validate, names::unet)
    }

    /// The picture codec.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing or malformed.
    pub fn vae(&self) -> Result<Component<VaeConfig>> {
        self.component("vae", DIFFUSERS, VaeConfig::validate, names::vae)
    }

    /// The text encoder.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing or malformed.
    pub fn text_encoder(&self) -> Result<Component<TextConfig>> {
        self.component("text_encoder", TRANSFORMERS, TextConfig::validate, names::text)
    }

    /// The tokenizer of prompts.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing or malformed.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.needs("tokenizer")?;
        Tokenizer::open(self.dir.join("tokenizer"))
    }

    /// One line on how the folder's scheduler differs from the schedule of AnimateDiff, which is used regardless.
    ///
    /// # Errors
    /// [`Error::Model`] if there is one and it cannot be read.
    pub fn scheduler_note(&self) -> Result<Option<String>> {
        let path = self.dir.join("scheduler").join("scheduler_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let found: Map<String, Value> = read_json(&path)?;
        let used = [
            ("num_train_timesteps", json!(1000)),
            ("beta_schedule", json!("linear")),
            ("beta_start", json!(0.00085)),
            ("beta_end", json!(0.012)),
            ("steps_offset", json!(1)),
            ("set_alpha_to_one", json!(true)),
            ("prediction_type", json!("epsilon")),
        ];
        let differs = used.iter().filter_map(|(key, ours)| {
            let theirs = found
                .get(*key)
                .filter(|theirs| *theirs != ours && theirs.as_f64() != ours.as_f64().or(Some(f64::NAN)))?;
            Some(format!("{key} {theirs} (used: {ours})"))
        });
        let differs: Vec<_> = differs.collect();
        let note = format!("{} is not obeyed: {}", path.display(), differs.join(", "));
        Ok((!differs.is_empty()).then_some(note))
    }

    fn needs(&self, name: &str) -> Result<()> {
        if self.dir.join(name).is_dir() {
            return Ok(());
        }
        let index = self.dir.join("model_index.json");
        let class = read_json::<Map<String, Value>>(&index).ok().and_then(|map| map.get("_class_name").cloned());
        let detail = match class.as_ref().and_then(Value::as_str) {
            Some(class) => format!("has no folder {name}; it is a {class}, a StableDiffusionPipeline is needed"),
            None => {
                format!("has no folder {name}; a Stable Diffusion 1.5 model folder as diffusers writes it is needed")
            }
        };
        Err(Error::model(&self.dir, detail))
    }

    fn component<C: DeserializeOwned>(
        &self,
        name: &str,
        stem: &str,
        validate: impl Fn(&C, &Path) -> Result<()>,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<Component<C>> {
        self.needs(name)?;
        open_component(&self.dir.join(name), stem, self.variant.as_deref(), validate, rename)
    }
}

/// Opens a CLIPModel folder; its tokenizer files are in the same folder.
///
/// # Errors
/// [`Error::Model`] if it is missing or malformed.
pub fn open_clip(dir: impl AsRef<Path>) -> Result<Component<ClipConfig>> {
    open_component(dir.as_ref(), TRANSFORMERS, None, ClipConfig::validate, names::clip)
}

/// Opens the weights and the configuration of one folder.
pub(super) fn open_component<C: DeserializeOwned>(
    dir: &Path,
    stem: &str,
    variant: Option<&str>,
    validate: impl Fn(&C, &Path) -> Result<()>,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<Component<C>> {
    let path = dir.join("config.json");
    let config: C = read_json(&path)?;
    validate(&config, &path)?;
    let (files, note) = weight_files(dir, stem, variant)?;
    let shown = if let [file] = &files[..] { file.as_path() } else { dir };
    let weights = Checkpoint::open_all(shown, &files)?.renamed(rename)?;
    Ok(Component { config, weights, note })
}

/// Reads a JSON file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::model(path, format!("cannot be understood: {e}")))
}

/// Reads a text file of a model, of reasonable size.
pub(super) fn read_text(path: &Path) -> Result<String> {
    const MOST: u64 = 64 << 20;
    let about = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !about.is_file() || about.len() > MOST {
        return Err(Error::model(path, "is not a file of reasonable size"));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    String::from_utf8(bytes).map_err(|_| Error::model(path, "is not text"))
}

/// The files of a component's weights: the asked variant, else the plain one, else another, with a line for the
/// choice if it was not the plain one.
fn weight_files(dir: &Path, stem: &str, variant: Option<&str>) -> Result<(Vec<PathBuf>, Option<String>)> {
    let dotted = |v: &str| if v.is_empty() { String::new() } else { format!(".{v}") };
    let wanted = variant.into_iter().chain(["", "fp16", "non_ema"]);
    for v in wanted {
        let dot = dotted(v);
        let single = dir.join(format!("{stem}{dot}.safetensors"));
        let indexes = [format!("{stem}.safetensors.index{dot}.json"), format!("{stem}{dot}.safetensors.index.json")];
        let index = indexes.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        let files = match index {
            _ if single.is_file() => vec![single],
            Some(index) => shards(dir, &index)?,
            None => continue,
        };
        let asked = variant.is_some_and(|asked| asked != v);
        let note = match (v, asked) {
            ("", false) => None,
            ("", true) => Some(format!("{}: has no such variant; the plain weights are used", dir.display())),
            (v, _) => Some(format!("{}: the weights of variant {v} are used", dir.display())),
        };
        return Ok((files, note));
    }
    let pickle = [format!("{stem}.bin"), "pytorch_model.bin".into()].into_iter().find(|n| dir.join(n).exists());
    let detail = match pickle {
        Some(name) => format!(
            "has only pickle weights ({name}), which can run code when read and are refused; load the folder with \
             diffusers or transformers once and save_pretrained it"
        ),
        None => format!("has no weights ({stem}.safetensors)"),
    };
    Err(Error::model(dir, detail))
}

/// The files that an index of shards names, each checked to be a plain file name.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let map = read_json::<Index>(index)?.weight_map;
    let files: BTreeSet<_> = map.into_values().collect();
    let mut paths = Vec::with_capacity(files.len());
    for file in files {
        let mut parts = Path::new(&file).components();
        if !matches!((parts.next(), parts.next()), (Some(PathPart::Normal(_)), None)) {
            return Err(Error::model(index, format!("names {file:?}, which is not a file beside it")));
        }
        let path = dir.join(&file);
        if !path.is_file() {
            return Err(Error::model(index, format!("names {file}, which is missing")));
        }
        paths.push(path);
    }
    if paths.is_empty() {
        return Err(Error::model(index, "names no files"));
    }
    Ok(paths)
}

//! Models with random weights in the folders that diffusers and transformers read, so that everything can be run,
//! compared and timed without a download.

mod recipe;
mod tokenizer;
mod weights;

pub use recipe::Recipe;
pub use tokenizer::write_tokenizer;

use std::fs::create_dir_all;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::model::clip::{Clip, TextEncoder};
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::nn::{Params, Recorder};
use crate::{DType, Device, Error, Result, Shape, fs};

/// The folders that [`write_models`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// A Stable Diffusion 1.5 folder.
    pub base: PathBuf,
    /// A MotionAdapter folder.
    pub motion: PathBuf,
    /// A CLIPModel folder.
    pub clip: PathBuf,
}

/// Names and shapes of the parameters of each model of a recipe.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    pub unet: Vec<(String, Shape)>,
    pub vae: Vec<(String, Shape)>,
    pub text: Vec<(String, Shape)>,
    pub motion: Vec<(String, Shape)>,
    pub clip: Vec<(String, Shape)>,
}

impl Parameters {
    /// What the models of a recipe ask for when they are built.
    ///
    /// # Errors
    /// Those of the models' constructors.
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let device = Device::cpu(Some(1))?;
        let root = |recorder| Params::new(recorder, &device, None);
        let [unet, motion, vae, text, clip] = std::array::from_fn(|_| Recorder::new());
        UNet::new(&root(&unet), &recipe.unet, Some((&root(&motion), &recipe.motion)))?;
        Vae::new(&root(&vae), &recipe.vae)?;
        TextEncoder::new(&root(&text), &recipe.text)?;
        Clip::new(&root(&clip), &recipe.clip)?;
        Ok(Parameters {
            unet: unet.names(),
            vae: vae.names(),
            text: text.names(),
            motion: motion.names(),
            clip: clip.names(),
        })
    }
}

/// Writes `out/base`, `out/motion` and `out/clip` with random weights that depend on `seed`, the names and the shapes
/// alone.
///
/// # Errors
/// [`Error::Model`] if the recipe's models do not fit each other; [`Error::Io`].
pub fn write_models(
    out: impl AsRef<Path>,
    recipe: &Recipe,
    parameters: &Parameters,
    seed: u64,
    dtype: DType,
) -> Result<Folders> {
    recipe.validate()?;
    let out = out.as_ref();
    let folders = Folders { base: out.join("base"), motion: out.join("motion"), clip: out.join("clip") };
    let folder = |path: PathBuf| create_dir_all(&path).map_err(Error::io(&path, "create")).map(|()| path);
    let torch_dtype = match dtype {
        DType::F16 => "float16",
        DType::F32 => "float32",
    };
    let (diffusers, transformers) = ("diffusion_pytorch_model.safetensors", "model.safetensors");
    let motion = (&parameters.motion, recipe.motion_json());
    let text = (&parameters.text, recipe.text_json(torch_dtype));
    let clip = (&parameters.clip, recipe.clip_json(torch_dtype));
    for (component, path, file, (names, config)) in [
        ("unet", folders.base.join("unet"), diffusers, (&parameters.unet, recipe.unet_json())),
        ("vae", folders.base.join("vae"), diffusers, (&parameters.vae, recipe.vae_json())),
        ("text_encoder", folders.base.join("text_encoder"), transformers, text),
        ("motion", folders.motion.clone(), diffusers, motion),
        ("clip", folders.clip.clone(), transformers, clip),
    ] {
        let path = folder(path)?;
        let tables = if component == "motion" { position_tables(recipe, names) } else { Vec::new() };
        weights::write_random(&path.join(file), component, names, &tables, seed, dtype)?;
        write_json(&path.join("config.json"), &config)?;
    }
    write_tokenizer(folder(folders.base.join("tokenizer"))?)?;
    write_tokenizer(&folders.clip)?;
    write_json(&folders.clip.join("preprocessor_config.json"), &recipe.preprocessor_json())?;
    write_json(&folder(folders.base.join("scheduler"))?.join("scheduler_config.json"), &scheduler_json())?;
    write_json(&folders.base.join("model_index.json"), &index_json())?;
    Ok(folders)
}

/// The sinusoids of frame positions, which diffusers expects in the file.
fn position_tables(recipe: &Recipe, names: &[(String, Shape)]) -> Vec<(String, Shape, Vec<f32>)> {
    let frames = recipe.motion.motion_max_seq_length;
    let blocks = names.iter().filter_map(|(name, shape)| Some((name.strip_suffix("norm1.weight")?, shape[0])));
    let table = |(block, width): (&str, usize)| {
        let positions = (0..frames).flat_map(|frame| crate::data::motion::positions(frame, width));
        (format!("{block}pos_embed.pe"), [1, frames, width].into(), positions.map(|x| x as f32).collect())
    };
    blocks.map(table).collect()
}

/// The schedule that AnimateDiff's modules are trained for.
fn scheduler_json() -> Value {
    json!({
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.21.0",
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    })
}

fn index_json() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.21.0",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    write_text(path, &format!("{json:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write_atomically(path, |file| file.write_all(text.as_bytes()))
}

//! `forward`: one module on tensors from a file.

use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::engine::{Engine, Motions, Pictures, Texts, dtype};
use super::invocation::{Forward, Invocation};
use super::progress::Reporter;
use super::run_folder::prepare_output;
use super::{layout, loras, output};
use crate::data::{NamedTensors, TensorWriter, folder};
use crate::model::clip::Clip;
use crate::model::unet::{Condition, Contexts, Motion};
use crate::nn::Context;
use crate::{Device, Error, Result, Shape, Tape, Tensor, Var};

/// The operands of a module.
struct Operands<'f> {
    file: Option<NamedTensors>,
    args: &'f Forward,
    device: Device,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Config`] for missing flags, [`Error::Input`] for tensors that are missing or do not fit, those of the
/// module.
pub fn run(invocation: &Invocation, args: &Forward, config: &Config) -> Result<()> {
    let mut reporter = Reporter::new(config.text("log.progress").unwrap_or("auto"), invocation.verbosity);
    prepare_output(&args.output)?;
    if let Some(path) = args.input.as_deref().filter(|p| !p.exists()) {
        return Err(Error::input(path, "does not exist (--in)"));
    }
    let (device, line) = super::device(config)?;
    line.iter().for_each(|line| reporter.detail(line));
    let file = args.input.as_deref().map(NamedTensors::open).transpose()?;
    let operands = Operands { file, args, device: device.clone() };
    let mut out = TensorWriter::new();
    let reporter = &mut reporter;
    device.run(|| match args.module.as_str() {
        "unet2d" => operands.unet(config, reporter, Rank::Pictures, &mut out),
        "unet" => operands.unet(config, reporter, Rank::Videos, &mut out),
        "text" => operands.text(config, reporter, &mut out),
        "vae-encode" => operands.encode(config, &mut out),
        "vae-decode" => operands.decode(config, &mut out),
        _ => operands.clip(config, &mut out),
    })?;
    out.write(&args.output)?;
    let written = NamedTensors::open(&args.output)?;
    let shape = |name: &str| Some((name.to_string(), json!(written.shape(name)?.to_vec())));
    let shapes: Map<String, Json> = written.names().filter_map(shape).collect();
    let object = json!({ "module": args.module, "out": args.output, "tensors": shapes });
    output::result(invocation.json, &object, || format!("{}\n", args.output.display()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    Pictures,
    Videos,
}

impl Operands<'_> {
    fn floats(&self, name: &str, rank: usize, shape: &str) -> Result<(Shape, Vec<f32>)> {
        self.optional_floats(name, rank, shape)?.ok_or_else(|| self.lacks(name, shape))
    }

    fn optional_floats(&self, name: &str, rank: usize, shape: &str) -> Result<Option<(Shape, Vec<f32>)>> {
        let Some(file) = &self.file else { return Ok(None) };
        match file.floats(name)? {
            Some((found, _)) if found.len() != rank || found.contains(&0) => {
                Err(Error::input(file.path(), format!("{name} has the shape {found}; {shape} is needed")))
            }
            other => Ok(other),
        }
    }

    fn lacks(&self, name: &str, shape: &str) -> Error {
        match &self.file {
            Some(file) => Error::input(file.path(), format!("has no tensor {name} {shape}")),
            None => Error::config("--in", format!("missing: {} reads {name} {shape}", self.args.module)),
        }
    }

    fn ids(&self) -> Result<Option<Vec<Vec<u32>>>> {
        let Some(file) = &self.file else { return Ok(None) };
        let Some((shape, numbers)) = file.integers("input_ids")? else { return Ok(None) };
        let wrong = |detail: String| Error::input(file.path(), detail);
        if shape.len() != 2 || shape.contains(&0) {
            return Err(wrong(format!("input_ids has the shape {shape}; (B, 77) is needed")));
        }
        let ids: Option<Vec<u32>> = numbers.iter().map(|&x| u32::try_from(x).ok()).collect();
        let ids = ids.ok_or_else(|| wrong("input_ids has negative numbers".into()))?;
        Ok(Some(ids.chunks(shape[1]).map(<[u32]>::to_vec).collect()))
    }

    fn unet(&self, config: &Config, reporter: &mut Reporter, rank: Rank, out: &mut TensorWriter) -> Result<()> {
        let (sizes, shape, numbers) = match rank {
            Rank::Pictures => {
                let (shape, x) = self.floats("sample", 4, "(B, 4, h, w)")?;
                ([shape[0], shape[1], 1, shape[2], shape[3]], shape, x)
            }
            Rank::Videos => {
                let (shape, x) = self.floats("sample", 5, "(B, 4, F, h, w)")?;
                ([shape[0], shape[1], shape[2], shape[3], shape[4]], shape, x)
            }
        };
        let [b, c, f, h, w] = sizes;
        let (_, mut timesteps) = self.floats("timestep", 1, "(B)")?;
        if timesteps.len() == 1 {
            timesteps.resize(b, timesteps[0]);
        }
        let (context_shape, context) = self.floats("context", 3, "(B, 77, D)")?;
        let fits = timesteps.len() == b && context_shape[0] == b && timesteps.iter().all(|t| (0.0..1000.0).contains(t));
        if !fits {
            let path = self.args.input.clone().unwrap_or_default();
            let detail = format!("{b} samples need {b} timesteps in 0..999 and {b} prompts");
            return Err(Error::input(path, detail));
        }
        let motions = if rank == Rank::Videos { Motions::Required } else { Motions::Unused };
        let engine = Engine::load(config, &self.device, motions, reporter)?;
        if !self.args.bypass_motion {
            engine.check_frames(config, f)?;
        }
        let width = engine.unet.config().cross_attention_dim;
        if context_shape[2] != width || c != engine.unet.config().in_channels {
            let path = self.args.input.clone().unwrap_or_default();
            let (channels, found) = (engine.unet.config().in_channels, context_shape[2]);
            let detail =
                format!("this network takes {channels} channels and prompts of width {width}, not {c} and {found}");
            return Err(Error::input(path, detail));
        }
        let mut changes = engine.base.clone();
        for (path, scale) in config.scaled_paths("sample.lora") {
            loras::read(&path, &engine.unet)?.merge(&engine.unet, &mut changes, scale)?;
        }
        let motion = match (self.args.bypass_motion, self.args.bypass_single_frame) {
            (true, _) => Motion::Bypass,
            (false, true) => Motion::Auto,
            (false, false) => Motion::On,
        };
        let sample = Tensor::from_slice(&self.device, [b * f, h, w, c], &layout::videos_in(&numbers, sizes))?;
        let context = Context::new(Tensor::from_slice(&self.device, context_shape, &context)?);
        let condition = Condition {
            timesteps: &timesteps,
            contexts: Contexts::same(&context),
            frames: f,
            motion,
            changes: &changes,
            recompute: false,
        };
        let output = engine.unet.forward(&mut Tape::off(), &Var::constant(sample), condition)?;
        out.floats("output", shape, layout::videos_out(&output.tensor().to_vec(), sizes));
        Ok(())
    }

    fn text(&self, config: &Config, reporter: &mut Reporter, out: &mut TensorWriter) -> Result<()> {
        let mut texts = Texts::new(config, &self.device);
        let ids = match self.ids()? {
            Some(ids) => ids,
            None if self.args.prompts.is_empty() => {
                return Err(self.lacks("input_ids", "(B, 77), unless --prompt is given"));
            }
            None => texts.ids(&self.args.prompts, reporter)?,
        };
        let states = texts.forward(&ids)?;
        let numbers = ids.iter().flatten().map(|&id| id as i32).collect();
        out.integers("input_ids", [ids.len(), ids[0].len()], numbers);
        out.floats("last_hidden_state", states.shape(), states.to_vec());
        Ok(())
    }

    fn encode(&self, config: &Config, out: &mut TensorWriter) -> Result<()> {
        let (shape, numbers) = self.floats("image", 4, "(B, 3, H, W)")?;
        let [b, c, h, w] = shape[..] else { unreachable!("the rank should have been checked") };
        let pictures = Pictures::load(config, &self.device)?;
        let multiple = pictures.vae().downscale();
        if c != pictures.vae().config().in_channels || !h.is_multiple_of(multiple) || !w.is_multiple_of(multiple) {
            let path = self.args.input.clone().unwrap_or_default();
            return Err(Error::input(
                path,
                format!("image {shape}: H and W must be multiples of {multiple}, of 3 channels"),
            ));
        }
        let numbers = layout::pictures_in(&numbers, [b, c, h, w]);
        let posterior = pictures.vae().encode(&Tensor::from_slice(&self.device, [b, h, w, c], &numbers)?)?;
        for (name, tensor) in [("mean", posterior.mean), ("logvar", posterior.logvar)] {
            write_pictures(out, name, &tensor);
        }
        Ok(())
    }

    fn decode(&self, config: &Config, out: &mut TensorWriter) -> Result<()> {
        let (shape, numbers) = self.floats("latent", 4, "(B, 4, h, w)")?;
        let [b, c, h, w] = shape[..] else { unreachable!("the rank should have been checked") };
        let pictures = Pictures::load(config, &self.device)?;
        if c != pictures.vae().config().latent_channels {
            let path = self.args.input.clone().unwrap_or_default();
            return Err(Error::input(path, format!("latent {shape} has {c} channels")));
        }
        let numbers = layout::pictures_in(&numbers, [b, c, h, w]);
        let picture = pictures.vae().decode(&Tensor::from_slice(&self.device, [b, h, w, c], &numbers)?)?;
        write_pictures(out, "image", &picture);
        Ok(())
    }

    fn clip(&self, config: &Config, out: &mut TensorWriter) -> Result<()> {
        let Some(dir) = &self.args.clip else {
            return Err(Error::config("--clip", "missing: the folder of a CLIPModel"));
        };
        let component = folder::open_clip(dir)?;
        let clip = component.weights.load(&self.device, dtype(config), |p| Clip::new(p, &component.config))?;
        let (pixels, ids) = (self.optional_floats("pixel_values", 4, "(B, 3, s, s)")?, self.ids()?);
        if pixels.is_none() && ids.is_none() {
            return Err(self.lacks("pixel_values", "(B, 3, s, s), nor input_ids (N, 77)"));
        }
        if let Some((shape, numbers)) = pixels {
            let [b, c, h, w] = shape[..] else { unreachable!("the rank should have been checked") };
            let side = component.config.vision_config.image_size;
            if [h, w] != [side, side] || c != 3 {
                let path = self.args.input.clone().unwrap_or_default();
                return Err(Error::input(path, format!("pixel_values {shape}; (B, 3, {side}, {side}) is needed")));
            }
            let numbers = layout::pictures_in(&numbers, [b, c, h, w]);
            let embeds = clip.embed_pictures(&Tensor::from_slice(&self.device, [b, h, w, c], &numbers)?)?;
            out.floats("image_embeds", embeds.shape(), embeds.to_vec());
        }
        if let Some(ids) = ids {
            let embeds = clip.embed_text(&ids)?;
            out.floats("text_embeds", embeds.shape(), embeds.to_vec());
        }
        Ok(())
    }
}

/// (B, H, W, C) as (B, C, H, W).
fn write_pictures(out: &mut TensorWriter, name: &str, tensor: &Tensor) {
    let shape = tensor.shape();
    let dims = [shape[0], shape[3], shape[1], shape[2]];
    out.floats(name, dims, layout::pictures_out(&tensor.to_vec(), dims));
}

//! Files of random numbers for replaying a run: contract tensors in, the engine's draws out.

use std::path::Path;

use super::layout;
use super::progress::Reporter;
use crate::data::NamedTensors;
use crate::diffusion::Schedule;
use crate::train::spatial::SpatialDraws;
use crate::train::temporal::TemporalDraws;
use crate::train::ttt::TttDraws;
use crate::{Device, Error, Result, Tensor};

/// An open file of draws.
pub struct Draws {
    file: NamedTensors,
    device: Device,
}

/// Sizes of a video's latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSize {
    pub frames: usize,
    pub height: usize,
    pub width: usize,
}

impl Draws {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Input`] if it is no safetensors file.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        if !path.exists() {
            return Err(Error::input(path, "does not exist (--draws)"));
        }
        Ok(Draws { file: NamedTensors::open(path)?, device: device.clone() })
    }

    /// The file.
    pub fn file(&self) -> &NamedTensors {
        &self.file
    }

    fn wrong(&self, detail: String) -> Error {
        Error::input(self.file.path(), detail)
    }

    /// Pictures (N, 4, h, w) as (N, h, w, 4).
    pub fn pictures(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((shape, numbers)) = self.file.floats(name)? else { return Ok(None) };
        let [n, c @ 4, h, w] = shape[..] else {
            return Err(self.wrong(format!("{name} has the shape {shape}; (N, 4, h, w) is needed")));
        };
        self.positive(name, &shape)?;
        Tensor::from_slice(&self.device, [n, h, w, c], &layout::pictures_in(&numbers, [n, c, h, w])).map(Some)
    }

    /// Videos (S, 4, F, h, w) as (S*F, h, w, 4), with S.
    pub fn videos(&self, name: &str) -> Result<Option<(usize, Tensor)>> {
        let Some((shape, numbers)) = self.file.floats(name)? else { return Ok(None) };
        let [s, c @ 4, f, h, w] = shape[..] else {
            return Err(self.wrong(format!("{name} has the shape {shape}; (S, 4, F, h, w) is needed")));
        };
        self.positive(name, &shape)?;
        let inner = layout::videos_in(&numbers, [s, c, f, h, w]);
        Ok(Some((s, Tensor::from_slice(&self.device, [s * f, h, w, c], &inner)?)))
    }

    /// Encoded prompts (n, L, D).
    pub fn contexts(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((shape, numbers)) = self.file.floats(name)? else { return Ok(None) };
        if shape.len() != 3 {
            return Err(self.wrong(format!("{name} has the shape {shape}; (n, 77, D) is needed")));
        }
        self.positive(name, &shape)?;
        Tensor::from_slice(&self.device, shape, &numbers).map(Some)
    }

    /// One encoded prompt (1, L, D).
    pub fn context(&self, name: &str) -> Result<Option<Tensor>> {
        match self.contexts(name)? {
            Some(tokens) if tokens.shape()[0] != 1 => {
                Err(self.wrong(format!("{name} has {} prompts; one is needed", tokens.shape()[0])))
            }
            other => Ok(other),
        }
    }

    /// Numbers below `bound`, one a step.
    pub fn indices(&self, name: &str, bound: usize) -> Result<Option<Vec<usize>>> {
        let Some((shape, numbers)) = self.file.integers(name)? else { return Ok(None) };
        if shape.len() != 1 {
            return Err(self.wrong(format!("{name} has the shape {shape}; (S) is needed")));
        }
        let index = |&x: &i64| usize::try_from(x).ok().filter(|&x| x < bound);
        let all: Option<Vec<usize>> = numbers.iter().map(index).collect();
        all.map(Some).ok_or_else(|| self.wrong(format!("{name} has numbers outside of 0..{}", bound - 1)))
    }

    /// What the file has for the spatial stage, whose pictures have the shape `latents` (N, h, w, 4).
    ///
    /// # Errors
    /// [`Error::Input`] for tensors that do not fit.
    pub fn spatial(&self, latents: &Tensor) -> Result<SpatialDraws> {
        let noise = self.pictures("noise")?;
        if let Some(noise) = &noise
            && noise.shape()[1..] != latents.shape()[1..]
        {
            return Err(self.unlike("noise", noise, latents));
        }
        Ok(SpatialDraws {
            image_index: self.indices("image_index", latents.shape()[0])?,
            timestep: self.indices("timestep", Schedule::TIMES)?,
            noise,
        })
    }

    /// What the file has for the temporal stage, whose clip is `latents` (F, h, w, 4).
    ///
    /// # Errors
    /// As [`Self::spatial`].
    pub fn temporal(&self, latents: &Tensor) -> Result<TemporalDraws> {
        let noise = self.videos("noise")?;
        if let Some((s, noise)) = &noise
            && (noise.shape()[0] != s * latents.shape()[0] || noise.shape()[1..] != latents.shape()[1..])
        {
            return Err(self.unlike("noise", noise, latents));
        }
        Ok(TemporalDraws {
            timestep: self.indices("timestep", Schedule::TIMES)?,
            anchor: self.indices("anchor", latents.shape()[0])?,
            noise: noise.map(|(_, noise)| noise),
        })
    }

    /// What the file has for test-time training, beside the prompts: references of `size`, the appearance ones of
    /// `appearance_frames` frames.
    ///
    /// # Errors
    /// As [`Self::spatial`].
    pub fn ttt(&self, size: LatentSize, appearance_frames: usize) -> Result<TttDraws> {
        let video = |name: &str, frames: usize| match self.videos(name)? {
            Some((s, x)) if x.shape()[..] != [s * frames, size.height, size.width, 4] => {
                let needed = format!("(S, 4, {frames}, {}, {})", size.height, size.width);
                Err(self.wrong(format!("{name} does not go with the others: {needed} is needed")))
            }
            other => Ok(other.map(|(_, x)| x)),
        };
        Ok(TttDraws {
            prompts: Default::default(),
            start_appearance: video("start_appearance", appearance_frames)?,
            start_motion: video("start_motion", size.frames)?,
            timestep_appearance: self.indices("timestep_appearance", Schedule::TIMES)?,
            timestep_motion: self.indices("timestep_motion", Schedule::TIMES)?,
            noise_appearance: video("noise_appearance", appearance_frames)?,
            noise_motion: video("noise_motion", size.frames)?,
            anchor: self.indices("anchor", size.frames)?,
        })
    }

    /// Sizes of the video that a tensor (.., 4, F, h, w) of the file has.
    pub fn latent_size(&self, names: &[&str]) -> Option<LatentSize> {
        let shape = names.iter().find_map(|name| self.file.shape(name))?;
        match shape[..] {
            [_, _, frames, height, width] => Some(LatentSize { frames, height, width }),
            _ => None,
        }
    }

    /// The number of steps that the file has draws for, among tensors with one row a step.
    pub fn steps(&self, names: &[&str]) -> Option<usize> {
        names.iter().filter_map(|name| self.file.shape(name)?.first().copied()).min()
    }

    /// Steps to run: those asked for, which the file must cover, or else as many as it covers.
    ///
    /// # Errors
    /// [`Error::Input`] if more are asked for than it has.
    pub fn limit_steps(&self, names: &[&str], asked: usize, explicit: bool) -> Result<usize> {
        match self.steps(names) {
            Some(has) if explicit && asked > has => {
                Err(self.wrong(format!("has draws of {has} steps; {asked} steps were asked for")))
            }
            Some(has) if !explicit => Ok(has),
            _ => Ok(asked),
        }
    }

    /// Names tensors that nothing asked for.
    pub fn warn_of_unused(&self, reporter: &mut Reporter) {
        let known = |name: &String| name.starts_with("unet.") || name == "loss" || name.contains(".unet.");
        let unused: Vec<String> = self.file.unused().into_iter().filter(|name| !known(name)).collect();
        if !unused.is_empty() {
            let path = self.file.path().display();
            reporter.warn(format!("{path}: not used: {}", crate::error::abridged(&unused)));
        }
    }

    fn positive(&self, name: &str, shape: &[usize]) -> Result<()> {
        if shape.contains(&0) { Err(self.wrong(format!("{name} is empty"))) } else { Ok(()) }
    }

    fn unlike(&self, name: &str, tensor: &Tensor, latents: &Tensor) -> Error {
        let [a, b] = [tensor, latents].map(|t| format!("{}", t.shape()));
        self.wrong(format!("{name} does not go with the latents: {a} and {b}, channels last"))
    }
}

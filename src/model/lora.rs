//! Low-rank adaptation of the UNet's linear layers: which layers, initial values, attaching and merging.
//!
//! `y = W x + b + scale * dropout(up (down x))`, rank r capped at the smaller side of W, `down ~ N(0, 1/r^2)`,
//! `up = 0`, no alpha: DiffDirector's rule.

use super::unet::UNet;
use crate::nn::layer::Linear;
use crate::nn::pass::Changes;
use crate::ops::lora_matmul::{Adapter, Dropout};
use crate::{Device, Error, Philox, Result, Tape, Tensor, Var};

/// Which of a UNet layer's transformers is adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Over pixels: learns how things look.
    Spatial,
    /// Over frames, in the motion modules: learns how things move.
    Temporal,
}

/// A part of a transformer that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// First attention: q, k, v, out.
    Attn1,
    /// Second attention: to the prompt, or over frames again.
    Attn2,
    FeedForward,
    /// `proj_in` and `proj_out`.
    Projection,
}

/// The linear layers that a LoRA adapts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    pub kind: Kind,
    /// Block numbers; `None` for all.
    pub blocks: Option<Vec<usize>>,
    pub parts: Vec<Part>,
}

impl Targets {
    /// The parts inside the transformer block, in the given blocks.
    pub fn new(kind: Kind, blocks: Option<&[usize]>) -> Self {
        let parts = vec![Part::Attn1, Part::Attn2, Part::FeedForward];
        Targets { kind, blocks: blocks.map(<[usize]>::to_vec), parts }
    }

    /// The paper's spatial LoRA: blocks 2 and 6.
    pub fn spatial() -> Self {
        Self::new(Kind::Spatial, Some(&[2, 6]))
    }

    /// The paper's temporal LoRA: blocks 2 and 5.
    pub fn temporal() -> Self {
        Self::new(Kind::Temporal, Some(&[2, 5]))
    }

    /// The layers of `unet` that are meant, in the order of the forward pass.
    ///
    /// # Errors
    /// [`Error::Config`] if a listed block has no such layer.
    pub fn layers<'u>(&self, unet: &'u UNet) -> Result<Vec<&'u Linear>> {
        let half = unet.config().block_out_channels.len();
        let of_kind = unet.linears().into_iter().filter_map(|l| Some((Place::of(l.name(), half)?, l)));
        let of_kind: Vec<_> = of_kind.filter(|(place, _)| place.kind == self.kind).collect();
        if let Some(blocks) = &self.blocks {
            let mut known: Vec<usize> = of_kind.iter().map(|(place, _)| place.block).collect();
            known.dedup();
            if let Some(missing) = blocks.iter().find(|b| !known.contains(b)) {
                let kind = match self.kind {
                    Kind::Spatial => "spatial transformer",
                    Kind::Temporal => "motion module",
                };
                let known = known.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                let has = if known.is_empty() { "no block has one".into() } else { format!("blocks {known} have one") };
                return Err(Error::config("blocks", format!("block {missing} has no {kind}; {has}")));
            }
        }
        let wanted = |place: &Place| {
            self.blocks.as_ref().is_none_or(|b| b.contains(&place.block)) && self.parts.contains(&place.part)
        };
        Ok(of_kind.into_iter().filter(|(place, _)| wanted(place)).map(|(_, l)| l).collect())
    }

    /// Trainable parameters at rank `rank`.
    ///
    /// # Errors
    /// Those of [`Self::layers`].
    pub fn count(&self, unet: &UNet, rank: usize) -> Result<usize> {
        let sides = |l: &Linear| (l.weight().rows(), l.weight().columns());
        Ok(self.layers(unet)?.into_iter().map(sides).map(|(n, k)| rank.min(n).min(k) * (n + k)).sum())
    }
}

/// Where a layer stands, read off its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub kind: Kind,
    pub block: usize,
    pub part: Part,
}

impl Place {
    /// The place of the layer called `name` in a UNet with `half` down blocks; `None` if no transformer has it.
    pub fn of(name: &str, half: usize) -> Option<Self> {
        let mut parts = name.split('.');
        let block = match parts.next()? {
            "down_blocks" => parts.next()?.parse().ok()?,
            "mid_block" => half,
            "up_blocks" => half + 1 + parts.next()?.parse::<usize>().ok()?,
            _ => return None,
        };
        let kind = match parts.next()? {
            "attentions" => Kind::Spatial,
            "motion_modules" => Kind::Temporal,
            _ => return None,
        };
        let _layer = parts.next()?;
        let part = match parts.next()? {
            "proj_in" | "proj_out" => Part::Projection,
            "transformer_blocks" => match parts.nth(1)? {
                "attn1" => Part::Attn1,
                "attn2" => Part::Attn2,
                "ff" => Part::FeedForward,
                _ => return None,
            },
            _ => return None,
        };
        Some(Place { kind, block, part })
    }
}

/// The two factors of one layer's change.
#[derive(Clone, Debug)]
pub struct LoraPair {
    /// Name of the layer, as in the checkpoint.
    pub module: String,
    /// (R, K)
    pub down: Tensor,
    /// (N, R)
    pub up: Tensor,
}

/// A LoRA: factors for a set of layers.
#[derive(Clone, Debug, Default)]
pub struct Lora {
    pub pairs: Vec<LoraPair>,
}

/// The variables under which a LoRA takes part in a tape, in the order of its pairs.
pub struct Attached {
    /// (down, up)
    pub leaves: Vec<(Var, Var)>,
}

/// Dropout of a training step: mask bits are a function of (seed, step, layer, element).
#[derive(Clone, Copy, Debug)]
pub struct StepDropout {
    pub seed: u64,
    /// Stream of the first layer; each layer has one of its own.
    pub stream: u32,
    pub step: u32,
    /// Probability of zeroing an element.
    pub p: f32,
}

impl Lora {
    /// A fresh LoRA of rank `rank`, the same for a seed however many layers it has.
    ///
    /// # Errors
    /// [`Error::Config`] for rank 0, or without layers.
    pub fn init(device: &Device, layers: &[&Linear], rank: usize, philox: Philox) -> Result<Self> {
        if rank == 0 || layers.is_empty() {
            let detail = if rank == 0 { "must be at least 1" } else { "there is no layer to adapt" };
            return Err(Error::config("rank", detail));
        }
        let pair = |(i, layer): (usize, &&Linear)| {
            let (n, k) = (layer.weight().rows(), layer.weight().columns());
            let r = rank.min(n).min(k);
            let mut down = philox.normal_vec(i as u32, r * k);
            down.iter_mut().for_each(|v| *v /= r as f32);
            let (down, up) = (Tensor::from_slice(device, [r, k], &down)?, Tensor::zeros(device, [n, r]));
            Ok(LoraPair { module: layer.name().to_string(), down, up })
        };
        let pairs = layers.iter().enumerate().map(pair).collect::<Result<_>>()?;
        Ok(Lora { pairs })
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.pairs.iter().map(|p| p.down.shape().count() + p.up.shape().count()).sum()
    }

    /// Splits into the pairs of `kind` and the others.
    pub fn of_kind(&self, kind: Kind) -> Lora {
        let pairs = self.pairs.iter().filter(|p| Place::of(&p.module, 0).is_some_and(|place| place.kind == kind));
        Lora { pairs: pairs.cloned().collect() }
    }

    /// Makes every factor a leaf of `tape` and puts the products in force.
    pub fn attach(&self, tape: &mut Tape, changes: &mut Changes, scale: f32, dropout: Option<StepDropout>) -> Attached {
        let mut leaves = Vec::with_capacity(self.pairs.len());
        for (i, pair) in self.pairs.iter().enumerate() {
            let (down, up) = (tape.leaf(pair.down.clone()), tape.leaf(pair.up.clone()));
            let dropout = dropout.filter(|d| d.p > 0.0).map(|d| Dropout {
                philox: Philox::new(d.seed, d.stream + i as u32),
                step: d.step,
                p: d.p,
            });
            leaves.push((down.clone(), up.clone()));
            changes.entry(&pair.module).adapters.push(Adapter { down, up, scale, dropout });
        }
        Attached { leaves }
    }

    /// Merges the products, times `scale`, into the weights in force. Costs nothing in later passes.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer the UNet does not have; [`Error::Shape`] for factors that do not fit it.
    pub fn merge(&self, unet: &UNet, changes: &mut Changes, scale: f32) -> Result<()> {
        let layers: std::collections::HashMap<_, _> = unet.linears().into_iter().map(|l| (l.name(), l)).collect();
        for pair in &self.pairs {
            let Some(layer) = layers.get(&pair.module[..]) else {
                return Err(Error::config("lora", format!("the UNet has no layer {}", pair.module)));
            };
            let change = changes.entry(&pair.module);
            let merged = change.weight.as_ref().unwrap_or(layer.weight()).merged(&pair.down, &pair.up, scale)?;
            change.weight = Some(merged);
        }
        Ok(())
    }
}

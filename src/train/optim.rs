//! A LoRA in training: its factors, their Lion momentum and the number of steps done.

use crate::model::lora::{Attached, Lora};
use crate::ops::lion::{self, Lion};
use crate::{Error, Grads, Result, Tensor, Var};

/// Everything a stage needs to go on.
#[derive(Clone, Debug)]
pub struct TrainState {
    pub lora: Lora,
    /// Momentum of (down, up) of every pair.
    pub momenta: Vec<(Tensor, Tensor)>,
    /// Steps done.
    pub step: usize,
}

/// Gradients of (down, up) of every pair of a LoRA.
#[derive(Clone, Debug)]
pub struct LoraGradients {
    pub pairs: Vec<(Tensor, Tensor)>,
}

impl TrainState {
    /// The state before the first step.
    pub fn new(lora: Lora) -> Self {
        let zeros = |t: &Tensor| Tensor::zeros(t.device(), t.shape());
        let momenta = lora.pairs.iter().map(|p| (zeros(&p.down), zeros(&p.up))).collect();
        TrainState { lora, momenta, step: 0 }
    }

    /// One optimizer step.
    pub(super) fn update(&mut self, gradients: &LoraGradients, lion: Lion) -> Result<()> {
        let momenta = self.momenta.iter_mut().zip(&gradients.pairs);
        for (pair, ((m_down, m_up), (d_down, d_up))) in self.lora.pairs.iter_mut().zip(momenta) {
            lion::step(&mut pair.down, d_down, m_down, lion)?;
            lion::step(&mut pair.up, d_up, m_up, lion)?;
        }
        self.step += 1;
        Ok(())
    }
}

/// Gradients of some passes of a step; a factor that took part in none has none.
pub(super) struct Partial {
    pairs: Vec<(Option<Tensor>, Option<Tensor>)>,
}

impl Partial {
    /// Takes the gradients of `attached` out of `grads`, added to `sum` if there is one.
    pub(super) fn collect(attached: &Attached, grads: &mut Grads, sum: Option<Self>) -> Result<Self> {
        let before = sum.map_or_else(Vec::new, |s| s.pairs);
        let mut before = before.into_iter();
        let mut take = |leaf: &Var, sum: Option<Tensor>| -> Result<Option<Tensor>> {
            if let Some(sum) = sum {
                grads.add(leaf.id(), || Ok(sum))?;
            }
            Ok(leaf.id().and_then(|id| grads.take(id)))
        };
        let mut pairs = Vec::with_capacity(attached.leaves.len());
        for (down, up) in &attached.leaves {
            let (sum_down, sum_up) = before.next().unwrap_or_default();
            pairs.push((take(down, sum_down)?, take(up, sum_up)?));
        }
        Ok(Partial { pairs })
    }

    /// The whole gradient.
    ///
    /// # Errors
    /// [`Error::MissingGradient`] with the layers that received none.
    pub(super) fn complete(self, lora: &Lora) -> Result<LoraGradients> {
        let mut missing = Vec::new();
        let mut pairs = Vec::with_capacity(self.pairs.len());
        for (pair, (down, up)) in lora.pairs.iter().zip(self.pairs) {
            match (down, up) {
                (Some(down), Some(up)) => pairs.push((down, up)),
                _ => missing.push(pair.module.clone()),
            }
        }
        if missing.is_empty() { Ok(LoraGradients { pairs }) } else { Err(Error::MissingGradient { names: missing }) }
    }
}

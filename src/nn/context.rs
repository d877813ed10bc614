//! Encoded prompts, with the keys and values that frozen layers make of them.

use std::sync::Mutex;

use crate::nn::layer::Linear;
use crate::nn::pass::Pass;
use crate::{Result, Tensor, Var, Weight};

/// The encoded prompts of a batch. A frozen layer's projection of them is computed once and kept, so a
/// prompt that stays the same over steps costs nothing after the first.
pub struct Context {
    tokens: Tensor,
    projections: Mutex<Vec<(Weight, Tensor)>>,
}

impl Context {
    /// # Shapes
    /// tokens (B, L, D): one prompt per video.
    pub fn new(tokens: Tensor) -> Self {
        Context { tokens, projections: Mutex::default() }
    }

    /// The encoded prompts (B, L, D).
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// `layer` applied to the prompts.
    pub(super) fn project(&self, pass: &mut Pass, layer: &Linear) -> Result<Var> {
        let change = pass.changes.get(layer.name());
        let tokens = Var::constant(self.tokens.clone());
        if change.is_some_and(|c| !c.adapters.is_empty()) {
            return layer.forward(pass, &tokens, None);
        }
        let weight = layer.weight_under(change);
        let known = |kept: &[(Weight, Tensor)]| kept.iter().find(|(w, _)| w.same(weight)).map(|(_, t)| t.clone());
        let lock = || self.projections.lock().expect("no holder of the projections should panic");
        if let Some(tensor) = known(&lock()) {
            return Ok(Var::constant(tensor));
        }
        let projection = layer.forward(pass, &tokens, None)?;
        lock().push((weight.clone(), projection.tensor().clone()));
        Ok(projection)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Context{}", self.tokens.shape())
    }
}

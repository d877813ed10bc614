//! What a forward pass carries along: the tape, and the changes to linear layers that are in force.

use std::collections::HashMap;

use crate::ops::lora_matmul::Adapter;
use crate::{Tape, Weight};

/// A forward pass in progress.
pub struct Pass<'p, 'a> {
    pub tape: &'p mut Tape<'a>,
    pub changes: &'p Changes,
}

/// A change to one linear layer.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Stands in for the layer's own weight: a LoRA merged into it.
    pub weight: Option<Weight>,
    /// Low-rank products added to the result.
    pub adapters: Vec<Adapter>,
}

/// Changes by layer name. The same frozen network serves as base, teacher and student: only these differ.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    layers: HashMap<String, Change>,
}

impl Changes {
    /// No change: the base network.
    pub fn none() -> Self {
        Self::default()
    }

    /// The change to the layer called `name`.
    pub fn get(&self, name: &str) -> Option<&Change> {
        self.layers.get(name)
    }

    /// The change to the layer called `name`, for editing.
    pub fn entry(&mut self, name: &str) -> &mut Change {
        self.layers.entry(name.to_string()).or_default()
    }
}

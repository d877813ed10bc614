//! Layers with parameters: linear, convolution and the norms.

use crate::nn::params::Params;
use crate::nn::pass::{Change, Pass};
use crate::ops::conv2d::{self, Conv};
use crate::ops::group_norm::{self, GroupNorm as Statistics};
use crate::ops::layer_norm::{self, Position};
use crate::ops::{linear, lora_matmul};
use crate::{Result, Tape, Tensor, Var, Weight};

/// A linear layer, which LoRA may change; a 1x1 convolution is one too.
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features whose parameters are under `params`.
    ///
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        Self::build(params, params.weight("weight", [outputs, inputs])?, bias)
    }

    /// The same from the parameters of a 1x1 convolution.
    ///
    /// # Errors
    /// Those of the source.
    pub fn pointwise(params: &Params, outputs: usize, inputs: usize) -> Result<Self> {
        Self::build(params, params.weight("weight", [outputs, inputs, 1, 1])?, true)
    }

    fn build(params: &Params, weight: Weight, bias: bool) -> Result<Self> {
        let bias = if bias { Some(params.tensor("bias", [weight.rows()])?) } else { None };
        Ok(Linear { name: params.prefix().to_string(), weight, bias })
    }

    /// Name as in the checkpoint, without the leaf.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The frozen weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// `x W^T + b` with the changes in force, plus `residual`.
    ///
    /// # Shapes
    /// x (.., K) -> (.., N).
    ///
    /// # Errors
    /// Those of the operations.
    pub fn forward(&self, pass: &mut Pass, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let change = pass.changes.get(&self.name);
        let weight = self.weight_under(change);
        match change.map(|c| &c.adapters[..]) {
            None | Some([]) => linear::apply(pass.tape, x, weight, self.bias.as_ref(), residual),
            Some(adapters) => lora_matmul::apply(pass.tape, x, weight, self.bias.as_ref(), residual, adapters),
        }
    }

    /// The weight that takes part under `change`.
    pub(super) fn weight_under<'s>(&'s self, change: Option<&'s Change>) -> &'s Weight {
        change.and_then(|c| c.weight.as_ref()).unwrap_or(&self.weight)
    }
}

/// A convolution with bias; frozen always.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Weight,
    bias: Tensor,
    conv: Conv,
}

impl Conv2d {
    /// A 3x3 convolution of stride 1 that keeps the size.
    ///
    /// # Errors
    /// Those of the source.
    pub fn same(params: &Params, outputs: usize, inputs: usize) -> Result<Self> {
        Self::new(params, outputs, inputs, 3, Conv::same(3))
    }

    /// A square convolution.
    ///
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, outputs: usize, inputs: usize, kernel: usize, conv: Conv) -> Result<Self> {
        let weight = params.weight("weight", [outputs, inputs, kernel, kernel])?;
        Ok(Conv2d { weight, bias: params.tensor("bias", [outputs])?, conv })
    }

    /// # Shapes
    /// x (B, H, W, C) -> (B, H', W', N); `row_bias` (G, N) goes to G equal runs of rows.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn forward(&self, tape: &mut Tape, x: &Var, row_bias: Option<&Tensor>, residual: Option<&Var>) -> Result<Var> {
        conv2d::apply(tape, x, &self.weight, Some(&self.bias), self.conv, row_bias, residual)
    }
}

/// Group normalisation with scale and shift.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    gamma: Tensor,
    beta: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        Ok(GroupNorm {
            gamma: params.tensor("weight", [channels])?,
            beta: params.tensor("bias", [channels])?,
            groups,
            eps,
        })
    }

    /// Statistics of every picture on its own.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        self.apply(tape, x, 1, false)
    }

    /// The same, followed by SiLU.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn forward_silu(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        self.apply(tape, x, 1, true)
    }

    /// Statistics over every `images` consecutive pictures together.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn forward_over(&self, tape: &mut Tape, x: &Var, images: usize) -> Result<Var> {
        self.apply(tape, x, images, false)
    }

    fn apply(&self, tape: &mut Tape, x: &Var, images_per_group: usize, silu: bool) -> Result<Var> {
        let norm = Statistics { groups: self.groups, eps: self.eps, images_per_group, silu };
        group_norm::apply(tape, x, &self.gamma, &self.beta, norm)
    }
}

/// Layer normalisation with scale and shift.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, channels: usize, eps: f64) -> Result<Self> {
        let (gamma, beta) = (params.tensor("weight", [channels])?, params.tensor("bias", [channels])?);
        Ok(LayerNorm { gamma, beta, eps })
    }

    /// Normalises rows; adds a position's row of a table if one is given.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn forward(&self, tape: &mut Tape, x: &Var, position: Option<Position>) -> Result<Var> {
        layer_norm::apply(tape, x, &self.gamma, &self.beta, self.eps, position)
    }
}

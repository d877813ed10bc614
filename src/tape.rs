//! Reverse-mode differentiation for networks whose weights are frozen but for a few small matrices.
//!
//! A [`Var`] is a tensor inside a graph. Only what descends from a [`Tape::leaf`] carries an identity; all
//! else is a constant, for which nothing is recorded, saved or computed backwards. A node is a plain struct
//! whose fields are the saved tensors, so the tape can name and size itself.

use crate::{Device, Error, Result, Tensor};

/// Identity of a differentiable value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// A tensor in a computation; cloning shares it.
#[derive(Clone, Debug)]
pub struct Var {
    tensor: Tensor,
    id: Option<Id>,
}

impl Var {
    /// A value without a gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Var { tensor, id: None }
    }

    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The identity under which a gradient will be collected, if one is wanted.
    pub fn id(&self) -> Option<Id> {
        self.id
    }

    /// The same value cut off from the graph.
    pub fn detach(&self) -> Self {
        Var::constant(self.tensor.clone())
    }

    /// The same value and identity under another shape. Gradients flow unreshaped: every operation reads
    /// the gradient of its output by its own dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`] if the element counts differ.
    pub fn reshape(&self, shape: impl Into<crate::Shape>) -> Result<Self> {
        Ok(Var { tensor: self.tensor.reshape(shape)?, id: self.id })
    }
}

impl From<Tensor> for Var {
    fn from(tensor: Tensor) -> Self {
        Var::constant(tensor)
    }
}

/// One recorded operation.
pub trait Node: Send {
    /// The operation's stem.
    fn name(&self) -> &'static str;
    /// Bytes of the tensors kept for the backward pass.
    fn saved_bytes(&self) -> usize;
    /// Takes the gradients of its outputs out of `grads` and adds those of its inputs.
    ///
    /// # Errors
    /// Whatever the operation's backward reports.
    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing is differentiable.
    Off,
    /// Nodes are kept.
    Record,
    /// Identities are given out, nodes dropped: the first pass of a checkpointed block.
    Forget,
}

/// The operations of one forward pass, in order.
pub struct Tape<'a> {
    mode: Mode,
    nodes: Vec<Box<dyn Node + 'a>>,
    next: usize,
}

impl Default for Tape<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Tape<'a> {
    /// An empty, recording tape.
    pub fn new() -> Self {
        Tape { mode: Mode::Record, nodes: Vec::new(), next: 0 }
    }

    /// A tape that records nothing: for sampling.
    pub fn off() -> Self {
        Tape { mode: Mode::Off, ..Self::new() }
    }

    /// A value whose gradient is wanted.
    pub fn leaf(&mut self, tensor: Tensor) -> Var {
        let id = (self.mode != Mode::Off).then(|| self.fresh());
        Var { tensor, id }
    }

    /// Wraps the output of an operation. If one of `inputs` is differentiable, `node` is called with the
    /// output's identity and the operation recorded.
    pub fn record<N: Node + 'a>(&mut self, output: Tensor, inputs: &[&Var], node: impl FnOnce(Id) -> N) -> Var {
        if self.mode == Mode::Off || inputs.iter().all(|v| v.id.is_none()) {
            return Var::constant(output);
        }
        let id = self.fresh();
        if self.mode == Mode::Record {
            self.nodes.push(Box::new(node(id)));
        }
        Var { tensor: output, id: Some(id) }
    }

    /// Runs `block` without keeping what its backward pass needs; the backward pass runs it again.
    /// `block` must compute the same values both times.
    ///
    /// # Errors
    /// Whatever `block` reports.
    pub fn checkpoint<F>(&mut self, inputs: Vec<Var>, block: F) -> Result<Vec<Var>>
    where
        F: Fn(&mut Tape, &[Var]) -> Result<Vec<Var>> + Send + 'a,
    {
        if self.mode != Mode::Record {
            return block(self, &inputs);
        }
        let mut inner = Tape { mode: Mode::Forget, nodes: Vec::new(), next: self.next };
        let outputs = block(&mut inner, &inputs)?;
        self.next = inner.next;
        if outputs.iter().any(|v| v.id.is_some()) {
            let ids = outputs.iter().map(|v| v.id).collect();
            self.nodes.push(Box::new(CheckpointNode { block, inputs, outputs: ids }));
        }
        Ok(outputs)
    }

    /// Bytes kept for the backward pass.
    pub fn saved_bytes(&self) -> usize {
        self.nodes.iter().map(|n| n.saved_bytes()).sum()
    }

    /// Names of the recorded operations, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.nodes.iter().map(|n| n.name()).collect()
    }

    /// Runs the tape backwards from `seeds`: outputs and their gradients.
    ///
    /// # Errors
    /// Whatever a node reports; [`Error::Shape`] for a seed unlike its output.
    pub fn backward(self, seeds: &[(&Var, Tensor)]) -> Result<Grads> {
        let mut grads = Grads { slots: Vec::new(), next: self.next };
        for (var, grad) in seeds {
            if grad.shape().count() != var.tensor.shape().count() {
                let detail = format!("gradient {} for an output {}", grad.shape(), var.tensor.shape());
                return Err(Error::shape("backward", detail));
            }
            grads.add(var.id, || Ok(grad.clone()))?;
        }
        self.run_backward(&mut grads)?;
        Ok(grads)
    }

    fn run_backward(self, grads: &mut Grads) -> Result<()> {
        for node in self.nodes.into_iter().rev() {
            node.backward(grads)?;
        }
        Ok(())
    }

    fn fresh(&mut self) -> Id {
        self.next += 1;
        Id(self.next - 1)
    }
}

/// Gradients by identity.
pub struct Grads {
    slots: Vec<Option<Tensor>>,
    /// First identity no forward pass has used.
    next: usize,
}

impl Grads {
    /// Removes and returns the gradient collected for `id`.
    pub fn take(&mut self, id: Id) -> Option<Tensor> {
        self.slots.get_mut(id.0)?.take()
    }

    /// The gradient collected for `var`, left in place.
    pub fn get(&self, var: &Var) -> Option<&Tensor> {
        self.slots.get(var.id?.0)?.as_ref()
    }

    /// Updates the gradient of `id`: `update` gets the sum so far, if any, and returns the new sum. The
    /// first writer stores, later ones accumulate. Does nothing, and calls nothing, for a constant.
    ///
    /// # Errors
    /// Whatever `update` reports.
    pub fn update(&mut self, id: Option<Id>, update: impl FnOnce(Option<Tensor>) -> Result<Tensor>) -> Result<()> {
        let Some(Id(at)) = id else { return Ok(()) };
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        let sum = update(self.slots[at].take())?;
        self.slots[at] = Some(sum);
        Ok(())
    }

    /// Adds a whole gradient to that of `id`; `gradient` is not called for a constant.
    ///
    /// # Errors
    /// Whatever `gradient` reports.
    pub fn add(&mut self, id: Option<Id>, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.update(id, |sum| {
            let term = gradient()?;
            Ok(match sum {
                None => term,
                Some(mut sum) => {
                    accumulate(&mut sum, &term);
                    sum
                }
            })
        })
    }

    /// Checks that every one of the named variables received a gradient.
    ///
    /// # Errors
    /// [`Error::MissingGradient`] with the names of those that did not.
    pub fn require_all<'v>(&self, vars: impl IntoIterator<Item = (&'v str, &'v Var)>) -> Result<()> {
        let names: Vec<String> =
            vars.into_iter().filter(|(_, v)| self.get(v).is_none()).map(|(n, _)| n.to_string()).collect();
        if names.is_empty() { Ok(()) } else { Err(Error::MissingGradient { names }) }
    }
}

/// `sum += term`.
fn accumulate(sum: &mut Tensor, term: &Tensor) {
    match &sum.device().clone() {
        Device::Cpu(cpu) => cpu.accumulate(sum.host_mut(), term.host()),
    }
}

struct CheckpointNode<F> {
    block: F,
    inputs: Vec<Var>,
    outputs: Vec<Option<Id>>,
}

impl<F> Node for CheckpointNode<F>
where
    F: Fn(&mut Tape, &[Var]) -> Result<Vec<Var>> + Send,
{
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn saved_bytes(&self) -> usize {
        self.inputs.iter().map(|v| v.tensor.bytes()).sum()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        // The second run uses identities past all others; its inputs and leaves keep theirs, so that its
        // gradients land where an uncheckpointed block would have put them.
        let mut tape = Tape { mode: Mode::Record, nodes: Vec::new(), next: grads.next };
        let outputs = (self.block)(&mut tape, &self.inputs)?;
        grads.next = tape.next;
        for (old, new) in self.outputs.iter().zip(&outputs) {
            if let Some(grad) = old.and_then(|id| grads.take(id)) {
                grads.add(new.id, || Ok(grad))?;
            }
        }
        tape.run_backward(grads)
    }
}

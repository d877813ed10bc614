//! What an operation promises, as data: shapes to try, a naive f64 reference of its value and of its
//! gradient, its cost, and how exact it must be.

use crate::{Result, Shape, Tape, Var};

/// One set of named dimensions.
#[derive(Clone, Debug)]
pub struct Case {
    dims: Vec<(&'static str, usize)>,
}

impl Case {
    /// A case with the given dimensions.
    pub fn new(dims: &[(&'static str, usize)]) -> Self {
        Case { dims: dims.to_vec() }
    }

    /// The dimension called `name`.
    ///
    /// # Panics
    /// If the case has no such dimension: a mistake in the specification.
    pub fn get(&self, name: &str) -> usize {
        let found = self.dims.iter().find(|(n, _)| *n == name);
        found.unwrap_or_else(|| panic!("the case {self} should have a dimension {name}")).1
    }

    /// True if the dimension `name` is not zero: a switch.
    pub fn on(&self, name: &str) -> bool {
        self.get(name) != 0
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let text: Vec<_> = self.dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
        f.write_str(&text.join(" "))
    }
}

/// One operand of a case, filled with seeded standard normals times `scale` plus `shift`.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: &'static str,
    pub shape: Shape,
    pub scale: f32,
    pub shift: f32,
    /// True if the operation has a gradient for it.
    pub differentiable: bool,
}

impl Input {
    /// A differentiable operand with unit variance.
    pub fn new(name: &'static str, shape: impl Into<Shape>) -> Self {
        Input { name, shape: shape.into(), scale: 1.0, shift: 0.0, differentiable: true }
    }

    /// The same, frozen.
    pub fn frozen(name: &'static str, shape: impl Into<Shape>) -> Self {
        Input { differentiable: false, ..Self::new(name, shape) }
    }

    /// The same with another scale.
    pub fn scaled(self, scale: f32) -> Self {
        Input { scale, ..self }
    }

    /// The same with another mean.
    pub fn shifted(self, shift: f32) -> Self {
        Input { shift, ..self }
    }
}

/// How exact an f32 result must be against f64, by the kind of arithmetic. Backwards get twice as much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accuracy {
    /// Bit for bit.
    Exact,
    Elementwise,
    Norm,
    /// Sums of `k` products.
    Gemm {
        k: usize,
    },
    Attention,
    /// Reduction to a scalar.
    Scalar,
}

impl Accuracy {
    /// Largest relative L2 error, and largest error of one element in units of the last place of the larger
    /// of that element and the root mean square.
    pub fn limits(self) -> (f64, f64) {
        match self {
            Accuracy::Exact => (0.0, 0.0),
            Accuracy::Elementwise => (1.5e-7, 3.0),
            Accuracy::Norm => (2e-7, 6.0),
            Accuracy::Gemm { k } if k <= 1280 => (4e-7, 24.0),
            Accuracy::Gemm { .. } => (2e-6, 120.0),
            Accuracy::Attention => (1e-6, 60.0),
            Accuracy::Scalar => (1e-6, f64::INFINITY),
        }
    }
}

/// The specification of one operation.
pub trait OpSpec: Sync {
    /// The stem: file name, kernel prefix, error field.
    fn name(&self) -> &'static str;
    /// Small and ugly shapes: every path and edge of the operation.
    fn cases(&self) -> Vec<Case>;
    /// Shapes of the real model, for timing and for checks on a GPU.
    fn real_cases(&self) -> Vec<Case>;
    /// The operands of a case.
    fn inputs(&self, case: &Case) -> Vec<Input>;
    /// Outputs by naive loops in f64.
    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>>;
    /// The gradient of `sum(outputs * grads)` for every input, by the file's derivation; empty for frozen ones.
    /// An operation without differentiable inputs leaves it as it is.
    fn reference_backward(&self, _case: &Case, inputs: &[Vec<f64>], _grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![Vec::new(); inputs.len()]
    }
    /// Runs the operation as the models do.
    ///
    /// # Errors
    /// The operation's own; in particular for operands of the wrong shape.
    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>>;
    /// The same by simpler operations, where the operation is a fusion.
    ///
    /// # Errors
    /// Those of the simpler operations.
    fn unfused(&self, _case: &Case, _tape: &mut Tape, _inputs: &[Var]) -> Result<Option<Vec<Var>>> {
        Ok(None)
    }
    /// Exactness promised for a case.
    fn accuracy(&self, case: &Case) -> Accuracy;
    /// Arithmetic of the forward pass, 2 per multiply-add.
    fn flops(&self, case: &Case) -> u64;
    /// Bytes that the forward pass must read and write, f32 activations and weights.
    fn bytes(&self, case: &Case) -> u64 {
        let read: usize = self.inputs(case).iter().map(|i| i.shape.count()).sum();
        4 * read as u64 + 4 * self.output_count(case) as u64
    }
    /// Elements of all outputs.
    fn output_count(&self, case: &Case) -> usize;
}

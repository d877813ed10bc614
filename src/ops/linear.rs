//! A frozen linear layer: `y = x W^T + b + residual`.
//!
//! `dx = dy W`; `dresidual = dy`. W and b are frozen.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::filter::{self, Epilogue, Geometry};
use crate::tape::{Id, Node};
use crate::{DType, Device, Error, Grads, HostData, Result, Shape, Tape, Tensor, Var, Weight};

/// The stem.
pub const NAME: &str = "linear";

/// Checks the operands and returns the shape of `y`.
fn check(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Shape> {
    let n = weight.rows();
    if x.shape().last() != weight.columns() {
        return Err(Error::shape(NAME, format!("x {} does not fit the weight {}", x.shape(), weight.shape())));
    }
    if let Some(b) = bias.filter(|b| b.shape().count() != n) {
        return Err(Error::shape(NAME, format!("bias {} for {n} outputs", b.shape())));
    }
    let out = x.shape().with_last(n);
    if let Some(r) = residual.filter(|r| r.shape().count() != out.count()) {
        return Err(Error::shape(NAME, format!("residual {} for an output {out}", r.shape())));
    }
    Ok(out)
}

/// `y = x W^T + b + residual`.
///
/// # Shapes
/// x (.., K), weight (N, K) or (N, K, 1, 1), bias (N), residual and result (.., N).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn forward(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
    let shape = check(x, weight, bias, residual)?;
    let mut y = Tensor::empty(x.device(), shape);
    match x.device() {
        Device::Cpu(cpu) => {
            let epilogue =
                Epilogue { bias: bias.map(Tensor::host), residual: residual.map(Tensor::host), ..Epilogue::default() };
            let rows = Geometry::rows(shape.rows());
            filter::forward(cpu, y.host_mut(), x.host(), weight.packed(), rows, epilogue);
        }
    }
    Ok(y)
}

/// `dx = dy W`, added to `sum` if there is one.
///
/// # Shapes
/// dy (.., N); result (.., K).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(dy: &Tensor, weight: &Weight, sum: Option<Tensor>) -> Result<Tensor> {
    if dy.shape().last() != weight.rows() {
        return Err(Error::shape(NAME, format!("dy {} does not fit the weight {}", dy.shape(), weight.shape())));
    }
    let accumulate = sum.is_some();
    let mut dx = sum.unwrap_or_else(|| Tensor::empty(dy.device(), dy.shape().with_last(weight.columns())));
    match dy.device() {
        Device::Cpu(cpu) => {
            let rows = Geometry::rows(dy.shape().rows());
            filter::backward(cpu, dx.host_mut(), dy.host(), weight.packed(), rows, accumulate);
        }
    }
    Ok(dx)
}

struct LinearNode {
    x: Option<Id>,
    residual: Option<Id>,
    y: Id,
    weight: Weight,
    out: Shape,
}

impl Node for LinearNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        let dy = dy.reshape(self.out)?;
        grads.update(self.x, |sum| backward(&dy, &self.weight, sum))?;
        grads.add(self.residual, || Ok(dy))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, x: &Var, weight: &Weight, bias: Option<&Tensor>, residual: Option<&Var>) -> Result<Var> {
    let y = forward(x.tensor(), weight, bias, residual.map(Var::tensor))?;
    let out = y.shape();
    let inputs: Vec<_> = [Some(x), residual].into_iter().flatten().collect();
    let (x, residual) = (x.id(), residual.and_then(Var::id));
    Ok(tape.record(y, &inputs, |y| LinearNode { x, residual, y, weight: weight.clone(), out }))
}

/// The specification.
pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case = |m, n, k| Case::new(&[("M", m), ("N", n), ("K", k), ("f16", 0)]);
        let f16 = |m, n, k| Case::new(&[("M", m), ("N", n), ("K", k), ("f16", 1)]);
        let full = vec![case(1, 1, 1), case(7, 17, 5), case(6, 16, 256), case(13, 33, 257), case(64, 48, 96)];
        full.into_iter().chain([case(2, 100, 1300), f16(1, 17, 9), f16(5, 40, 300), f16(70, 130, 64)]).collect()
    }

    fn real_cases(&self) -> Vec<Case> {
        let case = |m, n, k| Case::new(&[("M", m), ("N", n), ("K", k), ("f16", 1)]);
        vec![case(16384, 320, 320), case(4096, 5120, 640), case(1024, 1280, 5120), case(256, 10240, 1280)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (m, n, k) = (case.get("M"), case.get("N"), case.get("K"));
        vec![
            Input::new("x", [m, k]),
            Input::frozen("weight", [n, k]).scaled((k as f32).recip().sqrt()),
            Input::frozen("bias", [n]),
            Input::new("residual", [m, n]),
        ]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (m, n, k) = (case.get("M"), case.get("N"), case.get("K"));
        let [x, w, b, r] = inputs else { unreachable!("inputs() lists four operands") };
        let w = stored(case, w);
        let mut y = r.clone();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            y[i * n + j] += b[j] + (0..k).map(|p| x[i * k + p] * w[j * k + p]).sum::<f64>();
        }
        vec![y]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (m, n, k) = (case.get("M"), case.get("N"), case.get("K"));
        let (w, dy) = (stored(case, &inputs[1]), &grads[0]);
        let mut dx = vec![0.0; m * k];
        for (i, p) in (0..m).flat_map(|i| (0..k).map(move |p| (i, p))) {
            dx[i * k + p] = (0..n).map(|j| dy[i * n + j] * w[j * k + p]).sum();
        }
        vec![dx, Vec::new(), Vec::new(), dy.clone()]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let weight = weight(case, inputs[1].tensor())?;
        Ok(vec![apply(tape, &inputs[0], &weight, Some(inputs[2].tensor()), Some(&inputs[3]))?])
    }

    fn accuracy(&self, case: &Case) -> Accuracy {
        Accuracy::Gemm { k: case.get("K").max(case.get("N")) }
    }

    fn flops(&self, case: &Case) -> u64 {
        2 * (case.get("M") * case.get("N") * case.get("K")) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        case.get("M") * case.get("N")
    }
}

/// An operand as the frozen weight the operation takes, in f16 where the case says so.
pub(super) fn weight(case: &Case, tensor: &Tensor) -> Result<Weight> {
    let dtype = if case.on("f16") { DType::F16 } else { DType::F32 };
    Weight::new(tensor.device(), tensor.shape(), &HostData::from(tensor.host()).to_dtype(dtype))
}

/// The numbers that [`weight`] keeps.
pub(super) fn stored(case: &Case, weight: &[f64]) -> Vec<f64> {
    let round = |&w: &f64| if case.on("f16") { half::f16::from_f32(w as f32).to_f64() } else { w };
    weight.iter().map(round).collect()
}

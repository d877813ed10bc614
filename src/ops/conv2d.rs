//! A frozen convolution, channels last: with `(u, v) = (oy s + ky - top, ox s + kx - left)`,
//! `y[b, oy, ox, n] = sum over ky, kx, c of x[b, u, v, c] W[n, c, ky, kx]  + bias[n] + row_bias[g, n] + residual`,
//! where x is zero outside the picture and `g` numbers equal runs of output rows.
//!
//! y is linear in x, so `dx[b, u, v, c]` is the sum of `dy[b, oy, ox, n] W[n, c, ky, kx]` over all
//! `(oy, ox, ky, kx, n)` that read `(u, v)`; `dresidual = dy`. W and both biases are frozen.

use super::linear::{stored, weight};
use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::filter::{self, Epilogue, Geometry};
use crate::tape::{Id, Node};
use crate::{DType, Device, Error, Grads, Result, Shape, Tape, Tensor, Var, Weight};

/// The stem.
pub const NAME: &str = "conv2d";

/// Where a filter moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    pub stride: usize,
    /// Zeros above, below, left and right of the picture.
    pub padding: [usize; 4],
}

impl Conv {
    /// Stride 1 and the padding that keeps the size with an odd `kernel`.
    pub const fn same(kernel: usize) -> Self {
        Conv { stride: 1, padding: [kernel / 2; 4] }
    }

    fn geometry(self, input: Shape, weight: &Weight) -> Result<Geometry> {
        let fail = |why: String| Err(Error::shape(NAME, why));
        let ([images, in_height, in_width, c], &[_, wc, kh, kw]) = (&input[..], &weight.shape()[..]) else {
            return fail(format!("x {input} and weight {} should have four dimensions", weight.shape()));
        };
        let [top, bottom, left, right] = self.padding;
        let (height, width) = (in_height + top + bottom, in_width + left + right);
        if *c != wc || self.stride == 0 || height < kh || width < kw {
            return fail(format!("x {input} does not fit the weight {} with {self:?}", weight.shape()));
        }
        Ok(Geometry {
            images: *images,
            in_height: *in_height,
            in_width: *in_width,
            out_height: (height - kh) / self.stride + 1,
            out_width: (width - kw) / self.stride + 1,
            stride: self.stride,
            pad_top: top,
            pad_left: left,
        })
    }
}

/// Checks the operands and returns the geometry and the shape of `y`.
fn check(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    conv: Conv,
    row_bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<(Geometry, Shape)> {
    let geometry = conv.geometry(x.shape(), weight)?;
    let n = weight.rows();
    let out = Shape::from([geometry.images, geometry.out_height, geometry.out_width, n]);
    if let Some(b) = bias.filter(|b| b.shape().count() != n) {
        return Err(Error::shape(NAME, format!("bias {} for {n} outputs", b.shape())));
    }
    let divides = |b: &Tensor| b.shape().last() == n && geometry.out_rows().is_multiple_of(b.shape().rows());
    if let Some(b) = row_bias.filter(|b| !divides(b)) {
        return Err(Error::shape(NAME, format!("row bias {} for an output {out}", b.shape())));
    }
    if let Some(r) = residual.filter(|r| r.shape().count() != out.count()) {
        return Err(Error::shape(NAME, format!("residual {} for an output {out}", r.shape())));
    }
    Ok((geometry, out))
}

/// The convolution of `x`, plus biases and residual.
///
/// # Shapes
/// x (B, H, W, C), weight (N, C, kh, kw), bias (N), row_bias (G, N) where G divides B*H'*W', residual and
/// result (B, H', W', N).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn forward(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    conv: Conv,
    row_bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (geometry, shape) = check(x, weight, bias, conv, row_bias, residual)?;
    let mut y = Tensor::empty(x.device(), shape);
    match x.device() {
        Device::Cpu(cpu) => {
            let epilogue = Epilogue {
                bias: bias.map(Tensor::host),
                row_bias: row_bias.map(Tensor::host),
                residual: residual.map(Tensor::host),
            };
            filter::forward(cpu, y.host_mut(), x.host(), weight.packed(), geometry, epilogue);
        }
    }
    Ok(y)
}

/// `dx` for an input of shape `input`, added to `sum` if there is one.
///
/// # Shapes
/// dy (B, H', W', N); input and result (B, H, W, C).
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn backward(dy: &Tensor, weight: &Weight, conv: Conv, input: Shape, sum: Option<Tensor>) -> Result<Tensor> {
    let geometry = conv.geometry(input, weight)?;
    if dy.shape().count() != geometry.out_rows() * weight.rows() {
        return Err(Error::shape(NAME, format!("dy {} for an input {input}", dy.shape())));
    }
    let accumulate = sum.is_some();
    let mut dx = sum.unwrap_or_else(|| Tensor::empty(dy.device(), input));
    match dy.device() {
        Device::Cpu(cpu) => filter::backward(cpu, dx.host_mut(), dy.host(), weight.packed(), geometry, accumulate),
    }
    Ok(dx)
}

struct Conv2dNode {
    x: Option<Id>,
    residual: Option<Id>,
    y: Id,
    weight: Weight,
    conv: Conv,
    input: Shape,
}

impl Node for Conv2dNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.update(self.x, |sum| backward(&dy, &self.weight, self.conv, self.input, sum))?;
        grads.add(self.residual, || Ok(dy))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(
    tape: &mut Tape,
    x: &Var,
    weight: &Weight,
    bias: Option<&Tensor>,
    conv: Conv,
    row_bias: Option<&Tensor>,
    residual: Option<&Var>,
) -> Result<Var> {
    let y = forward(x.tensor(), weight, bias, conv, row_bias, residual.map(Var::tensor))?;
    let inputs: Vec<_> = [Some(x), residual].into_iter().flatten().collect();
    let (input, x, residual) = (x.tensor().shape(), x.id(), residual.and_then(Var::id));
    Ok(tape.record(y, &inputs, |y| Conv2dNode { x, residual, y, weight: weight.clone(), conv, input }))
}

/// The specification.
pub struct Spec;

/// A case from `[B, H, W, C, N]`, the kernel size, the movement, the groups of the row bias (0 for none)
/// and the storage type.
fn case(sizes: [usize; 5], kernel: usize, conv: Conv, groups: usize, dtype: DType) -> Case {
    let [b, h, w, c, n] = sizes;
    let [top, bottom, left, right] = conv.padding;
    Case::new(&[
        ("B", b),
        ("H", h),
        ("W", w),
        ("C", c),
        ("N", n),
        ("kernel", kernel),
        ("stride", conv.stride),
        ("top", top),
        ("bottom", bottom),
        ("left", left),
        ("right", right),
        ("G", groups),
        ("f16", usize::from(dtype == DType::F16)),
    ])
}

impl Spec {
    fn conv(case: &Case) -> Conv {
        let padding = ["top", "bottom", "left", "right"].map(|side| case.get(side));
        Conv { stride: case.get("stride"), padding }
    }

    /// Height and width of the output.
    fn out_size(case: &Case) -> [usize; 2] {
        let conv = Spec::conv(case);
        let [top, bottom, left, right] = conv.padding;
        let steps = |n: usize| (n - case.get("kernel")) / conv.stride + 1;
        [steps(case.get("H") + top + bottom), steps(case.get("W") + left + right)]
    }

    /// Calls `visit(output row, input row, tap)` for every tap inside the picture.
    fn taps(case: &Case, mut visit: impl FnMut(usize, usize, usize)) {
        let (kernel, conv, [oh, ow]) = (case.get("kernel"), Spec::conv(case), Spec::out_size(case));
        let (h, w) = (case.get("H"), case.get("W"));
        for row in 0..case.get("B") * oh * ow {
            let (b, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            for tap in 0..kernel * kernel {
                let u = (oy * conv.stride + tap / kernel).checked_sub(conv.padding[0]).filter(|&u| u < h);
                let v = (ox * conv.stride + tap % kernel).checked_sub(conv.padding[2]).filter(|&v| v < w);
                if let (Some(u), Some(v)) = (u, v) {
                    visit(row, (b * h + u) * w + v, tap);
                }
            }
        }
    }
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        use DType::{F16, F32};
        let at = |stride, padding| Conv { stride, padding };
        vec![
            case([1, 1, 1, 1, 1], 1, Conv::same(1), 0, F32),
            case([2, 3, 5, 7, 17], 1, Conv::same(1), 2, F32),
            case([1, 4, 4, 5, 3], 3, Conv::same(3), 1, F32),
            case([2, 5, 7, 9, 20], 3, Conv::same(3), 2, F32),
            case([1, 8, 8, 16, 32], 3, Conv::same(3), 0, F16),
            case([2, 6, 8, 16, 20], 3, Conv::same(3), 1, F16),
            case([3, 5, 7, 24, 40], 3, Conv::same(3), 3, F32),
            case([1, 9, 7, 80, 24], 3, at(1, [2, 0, 1, 3]), 3, F16),
            case([1, 8, 9, 32, 136], 3, at(1, [0; 4]), 0, F32),
            case([2, 5, 6, 8, 16], 3, at(2, [1; 4]), 2, F32),
            case([1, 6, 5, 8, 18], 3, at(2, [0, 1, 0, 1]), 0, F16),
            case([1, 4, 3, 6, 5], 3, at(1, [2, 0, 1, 3]), 4, F32),
            case([1, 6, 6, 3, 4], 2, at(2, [0; 4]), 0, F32),
        ]
    }

    fn real_cases(&self) -> Vec<Case> {
        let same = |size, c, n| case([1, size, size, c, n], 3, Conv::same(3), 1, DType::F16);
        vec![same(32, 320, 320), same(16, 640, 640), same(8, 1280, 1280), same(4, 1280, 1280)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (b, c, n, kernel) = (case.get("B"), case.get("C"), case.get("N"), case.get("kernel"));
        let [oh, ow] = Spec::out_size(case);
        let mut inputs = vec![
            Input::new("x", [b, case.get("H"), case.get("W"), c]),
            Input::frozen("weight", [n, c, kernel, kernel]).scaled(((kernel * kernel * c) as f32).recip().sqrt()),
        ];
        if case.on("G") {
            inputs.push(Input::new("residual", [b, oh, ow, n]));
            inputs.push(Input::frozen("bias", [n]));
            inputs.push(Input::frozen("row_bias", [case.get("G"), n]));
        }
        inputs
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (c, n, taps) = (case.get("C"), case.get("N"), case.get("kernel").pow(2));
        let [oh, ow] = Spec::out_size(case);
        let (x, w) = (&inputs[0], &stored(case, &inputs[1]));
        let rows = case.get("B") * oh * ow;
        let mut y = vec![0.0; rows * n];
        if let [_, _, residual, bias, row_bias] = inputs {
            let run = rows / case.get("G");
            for (i, y) in y.iter_mut().enumerate() {
                *y = residual[i] + bias[i % n] + row_bias[i / n / run * n + i % n];
            }
        }
        Spec::taps(case, |row, pixel, tap| {
            for (j, p) in (0..n).flat_map(|j| (0..c).map(move |p| (j, p))) {
                y[row * n + j] += x[pixel * c + p] * w[(j * c + p) * taps + tap];
            }
        });
        vec![y]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (c, n, taps) = (case.get("C"), case.get("N"), case.get("kernel").pow(2));
        let (dy, w) = (&grads[0], &stored(case, &inputs[1]));
        let mut dx = vec![0.0; inputs[0].len()];
        Spec::taps(case, |row, pixel, tap| {
            // forward: y[row, j] += x[pixel, p] * w[j, p, tap]
            for (j, p) in (0..n).flat_map(|j| (0..c).map(move |p| (j, p))) {
                dx[pixel * c + p] += dy[row * n + j] * w[(j * c + p) * taps + tap];
            }
        });
        let mut all = vec![Vec::new(); inputs.len()];
        all[0] = dx;
        if case.on("G") {
            all[2] = dy.clone();
        }
        all
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let weight = weight(case, inputs[1].tensor())?;
        let bias = |i: usize| inputs.get(i).map(Var::tensor);
        Ok(vec![apply(tape, &inputs[0], &weight, bias(3), Spec::conv(case), bias(4), inputs.get(2))?])
    }

    fn accuracy(&self, case: &Case) -> Accuracy {
        Accuracy::Gemm { k: case.get("kernel").pow(2) * case.get("C").max(case.get("N")) }
    }

    fn flops(&self, case: &Case) -> u64 {
        2 * (self.output_count(case) * case.get("kernel").pow(2) * case.get("C")) as u64
    }

    fn output_count(&self, case: &Case) -> usize {
        let [oh, ow] = Spec::out_size(case);
        case.get("B") * oh * ow * case.get("N")
    }
}

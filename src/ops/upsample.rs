//! Nearest-neighbour resizing: `y[i, j] = x[i H / H', j W / W']`, indices rounded down, as PyTorch does.
//!
//! `dx` of a pixel is the sum of `dy` over the pixels that copied it.

use multiversion::multiversion;

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::device::cpu::math;
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Shape, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "upsample";

/// The source of `i` among `into` places that copy `from`.
fn source(i: usize, from: usize, into: usize) -> usize {
    i * from / into
}

/// The places among `into` that copy place `i` of `from`.
fn copies(i: usize, from: usize, into: usize) -> std::ops::Range<usize> {
    (i * into).div_ceil(from)..((i + 1) * into).div_ceil(from)
}

fn check(x: Shape, height: usize, width: usize) -> Result<[usize; 4]> {
    match x[..] {
        [b, h, w, c] if h * w * height * width > 0 => Ok([b, h, w, c]),
        _ => Err(Error::shape(NAME, format!("pictures {x} cannot become {height} by {width}"))),
    }
}

/// Pictures of another height and width.
///
/// # Shapes
/// x (B, H, W, C); result (B, height, width, C).
///
/// # Errors
/// [`Error::Shape`] unless `x` holds pictures and no side is zero.
pub fn forward(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let [b, h, w, c] = check(x.shape(), height, width)?;
    let mut y = Tensor::empty(x.device(), [b, height, width, c]);
    match x.device() {
        Device::Cpu(cpu) => {
            let x = x.host();
            cpu.chunks_mut(y.host_mut(), width * c, |row, y| {
                let from = row / height * h + source(row % height, h, height);
                for (j, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
                    y.copy_from_slice(&x[(from * w + source(j, w, width)) * c..][..c]);
                }
            });
        }
    }
    Ok(y)
}

/// The gradient of pictures of `shape`.
///
/// # Shapes
/// dy (B, height, width, C); result as `shape` (B, H, W, C).
///
/// # Errors
/// [`Error::Shape`] unless `dy` can have come from `shape`.
pub fn backward(dy: &Tensor, shape: Shape) -> Result<Tensor> {
    let &[b, height, width, c] = &dy.shape()[..] else {
        return Err(Error::shape(NAME, format!("dy {} is no batch of pictures", dy.shape())));
    };
    let [_, h, w, _] = check(shape, height, width)?;
    if shape[0] != b || shape[3] != c {
        return Err(Error::shape(NAME, format!("dy {} for pictures {shape}", dy.shape())));
    }
    let mut dx = Tensor::empty(dy.device(), shape);
    match dy.device() {
        Device::Cpu(cpu) => {
            let dy = dy.host();
            cpu.chunks_mut(dx.host_mut(), w * c, |row, dx| {
                let rows = copies(row % h, h, height).map(|i| (row / h * height + i) * width * c);
                gather(dx, dy, rows, [w, width, c]);
            });
        }
    }
    Ok(dx)
}

/// One row of dx from the rows of dy that start at `rows`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn gather(dx: &mut [f32], dy: &[f32], rows: impl Iterator<Item = usize> + Clone, [w, width, c]: [usize; 3]) {
    for (j, dx) in dx.chunks_exact_mut(c.max(1)).enumerate() {
        dx.fill(0.0);
        for at in rows.clone() {
            for k in copies(j, w, width) {
                math::accumulate(dx, &dy[at + k * c..][..c]);
            }
        }
    }
}

struct UpsampleNode {
    x: Option<Id>,
    y: Id,
    shape: Shape,
    out: Shape,
}

impl Node for UpsampleNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dy) = grads.take(self.y) else { return Ok(()) };
        grads.add(self.x, || backward(&dy.reshape(self.out)?, self.shape))
    }
}

/// [`forward`] on the tape.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, x: &Var, height: usize, width: usize) -> Result<Var> {
    let y = forward(x.tensor(), height, width)?;
    let (shape, out) = (x.tensor().shape(), y.shape());
    Ok(tape.record(y, &[x], |y| UpsampleNode { x: x.id(), y, shape, out }))
}

/// The specification.
pub struct Spec;

/// Case dimensions in the order B, h, w (source), H, W (result), C.
fn dims(case: &Case) -> [usize; 6] {
    ["B", "h", "w", "H", "W", "C"].map(|d| case.get(d))
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case =
            |b, h, w, to_h, to_w, c| Case::new(&[("B", b), ("h", h), ("w", w), ("H", to_h), ("W", to_w), ("C", c)]);
        vec![case(1, 1, 1, 1, 1, 1), case(2, 3, 4, 6, 8, 5), case(2, 3, 5, 5, 9, 8), case(1, 4, 4, 3, 2, 17)]
    }

    fn real_cases(&self) -> Vec<Case> {
        let case = |b, h, c| Case::new(&[("B", b), ("h", h), ("w", h), ("H", 2 * h), ("W", 2 * h), ("C", c)]);
        vec![case(16, 4, 1280), case(16, 16, 640), case(1, 128, 256)]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let [b, h, w, _, _, c] = dims(case);
        vec![Input::new("x", [b, h, w, c])]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [b, h, w, height, width, c] = dims(case);
        let mut y = Vec::new();
        for (n, i, j) in (0..b).flat_map(|n| (0..height).flat_map(move |i| (0..width).map(move |j| (n, i, j)))) {
            let (si, sj) = (i * h / height, j * w / width);
            y.extend_from_slice(&inputs[0][((n * h + si) * w + sj) * c..][..c]);
        }
        vec![y]
    }

    fn reference_backward(&self, case: &Case, _inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [b, h, w, height, width, c] = dims(case);
        let mut dx = vec![0.0; b * h * w * c];
        for (at, dy) in grads[0].iter().enumerate() {
            let (pixel, channel) = (at / c, at % c);
            let (n, i, j) = (pixel / width / height, pixel / width % height, pixel % width);
            dx[((n * h + i * h / height) * w + j * w / width) * c + channel] += dy;
        }
        vec![dx]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], case.get("H"), case.get("W"))?])
    }

    /// The value is exact; the gradient sums a few numbers.
    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Elementwise
    }

    fn flops(&self, _case: &Case) -> u64 {
        0
    }

    fn output_count(&self, case: &Case) -> usize {
        let [b, _, _, height, width, c] = dims(case);
        b * height * width * c
    }
}

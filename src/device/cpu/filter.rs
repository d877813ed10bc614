//! Products of activations with frozen weights: linear layers and convolutions are one operation here.

use super::gemm::{Mat, gemm};
use super::{Cpu, Packed};
use crate::weight::FilterDims;

/// Where a filter's taps fall: input and output sizes, stride and the padding before the first row and column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub images: usize,
    pub in_height: usize,
    pub in_width: usize,
    pub out_height: usize,
    pub out_width: usize,
    pub stride: usize,
    pub pad_top: usize,
    pub pad_left: usize,
}

impl Geometry {
    /// A linear layer over `rows` rows.
    pub(crate) fn rows(rows: usize) -> Self {
        Geometry {
            images: rows,
            in_height: 1,
            in_width: 1,
            out_height: 1,
            out_width: 1,
            stride: 1,
            pad_top: 0,
            pad_left: 0,
        }
    }

    pub(crate) fn in_rows(&self) -> usize {
        self.images * self.in_height * self.in_width
    }

    pub(crate) fn out_rows(&self) -> usize {
        self.images * self.out_height * self.out_width
    }
}

/// What is added to the product before it is stored.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// (N)
    pub bias: Option<&'a [f32]>,
    /// (G, N): row g is added to the g-th of G equal runs of output rows.
    pub row_bias: Option<&'a [f32]>,
    /// (out_rows, N)
    pub residual: Option<&'a [f32]>,
}

/// `y (out_rows, N) = filter(x (in_rows, C)) + epilogue`.
pub(crate) fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], weight: &Packed, geometry: Geometry, epilogue: Epilogue) {
    let FilterDims { n, c, kh, kw } = weight.dims();
    let wide = weight.wide();
    let rows = geometry.out_rows();
    let k = kh * kw * c;
    let columns = gather(x, weight.dims(), geometry);
    let groups = epilogue.row_bias.map_or(1, |b| b.len() / n);
    cpu.chunks_mut(y, n, |row, y| {
        match epilogue.residual {
            Some(r) => y.copy_from_slice(&r[row * n..][..n]),
            None => y.fill(0.0),
        }
        let mut add = |b: &[f32]| y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
        epilogue.bias.into_iter().for_each(&mut add);
        epilogue.row_bias.into_iter().for_each(|b| add(&b[row * groups / rows * n..][..n]));
    });
    gemm(y, n, 1.0, 1.0, Mat::new(&columns, rows, k, k), Mat::new(&wide, n, k, k).t());
}

/// `dx (in_rows, C) (+)= ` the gradient of `sum(dy * filter(x))`; overwrites unless `accumulate`.
pub(crate) fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], weight: &Packed, geometry: Geometry, accumulate: bool) {
    let FilterDims { n, c, kh, kw } = weight.dims();
    let wide = weight.wide();
    let (rows, k) = (geometry.out_rows(), kh * kw * c);
    let mut columns = cpu.alloc(rows * k);
    gemm(&mut columns, k, 0.0, 1.0, Mat::new(dy, rows, n, n), Mat::new(&wide, n, k, k));
    if !accumulate {
        dx.fill(0.0);
    }
    for_each_tap(weight.dims(), geometry, |row, tap, pixel| {
        let from = &columns[row * k + tap * c..][..c];
        dx[pixel * c..][..c].iter_mut().zip(from).for_each(|(d, f)| *d += f);
    });
}

fn gather(x: &[f32], dims: FilterDims, geometry: Geometry) -> Vec<f32> {
    let (c, k) = (dims.c, dims.kh * dims.kw * dims.c);
    let mut columns = vec![0.0; geometry.out_rows() * k];
    for_each_tap(dims, geometry, |row, tap, pixel| {
        columns[row * k + tap * c..][..c].copy_from_slice(&x[pixel * c..][..c]);
    });
    columns
}

/// Calls `visit(output row, tap, input row)` for every tap that falls inside the picture.
fn for_each_tap(dims: FilterDims, g: Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    for row in 0..g.out_rows() {
        let (image, place) = (row / (g.out_height * g.out_width), row % (g.out_height * g.out_width));
        let (oy, ox) = (place / g.out_width, place % g.out_width);
        for tap in 0..dims.kh * dims.kw {
            let y = (oy * g.stride + tap / dims.kw).wrapping_sub(g.pad_top);
            let x = (ox * g.stride + tap % dims.kw).wrapping_sub(g.pad_left);
            if y < g.in_height && x < g.in_width {
                visit(row, tap, (image * g.in_height + y) * g.in_width + x);
            }
        }
    }
}

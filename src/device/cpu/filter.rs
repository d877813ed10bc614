//! Products of activations with frozen weights: linear layers and convolutions, forwards and backwards, are
//! one operation here.
//!
//! A filter is a sum over its taps of linear layers, each on the rows that the tap finds inside the picture.
//! A task owns a block of output rows by a run of panels. For every tap and every block of input features it
//! lists which input row goes to which output row, widens one panel's block of weights to f32, and lets the
//! micro-kernel add six rows at a time. Nothing is gathered or padded, and a row outside the picture costs
//! nothing. The gradient is the same with input and output rows exchanged and the blocks transposed.

use super::FilterDims;
use super::micro::{LANES, Micro, Output, Pair, ROWS};
use super::{Cpu, Packed, winograd};

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

    fn in_rows(&self) -> usize {
        self.images * self.in_height * self.in_width
    }

    pub(crate) fn out_rows(&self) -> usize {
        self.images * self.out_height * self.out_width
    }

    /// The input row that tap `(ky, kx)` of output row `row` reads, if it lies inside the picture.
    fn source(&self, row: usize, [ky, kx]: [usize; 2]) -> Option<usize> {
        let (rest, ox) = (row / self.out_width, row % self.out_width);
        let (image, oy) = (rest / self.out_height, rest % self.out_height);
        let y = (oy * self.stride + ky).checked_sub(self.pad_top).filter(|&y| y < self.in_height)?;
        let x = (ox * self.stride + kx).checked_sub(self.pad_left).filter(|&x| x < self.in_width)?;
        Some((image * self.in_height + y) * self.in_width + x)
    }

    /// The output row whose tap `(ky, kx)` reads input row `row`, if there is one.
    fn reader(&self, row: usize, [ky, kx]: [usize; 2]) -> Option<usize> {
        let (rest, x) = (row / self.in_width, row % self.in_width);
        let (image, y) = (rest / self.in_height, rest % self.in_height);
        let steps = |at: usize, pad: usize, tap: usize, limit: usize| {
            let moved = (at + pad).checked_sub(tap).filter(|m| m.is_multiple_of(self.stride))?;
            Some(moved / self.stride).filter(|&o| o < limit)
        };
        let oy = steps(y, self.pad_top, ky, self.out_height)?;
        let ox = steps(x, self.pad_left, kx, self.out_width)?;
        Some((image * self.out_height + oy) * self.out_width + ox)
    }

    /// The filter turned by half a turn that computes the gradient of an unstrided square one.
    fn reverse(&self, [kh, kw]: [usize; 2]) -> Option<Self> {
        let pads = [(kh - 1).checked_sub(self.pad_top)?, (kw - 1).checked_sub(self.pad_left)?];
        (self.stride == 1 && kh == kw).then_some(Geometry {
            images: self.images,
            in_height: self.out_height,
            in_width: self.out_width,
            out_height: self.in_height,
            out_width: self.in_width,
            stride: 1,
            pad_top: pads[0],
            pad_left: pads[1],
        })
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

impl Epilogue<'_> {
    /// Fills columns `first ..` of output row `row` of `rows`, of `n` columns each.
    fn start(&self, out: &mut [f32], row: usize, rows: usize, first: usize, n: usize) {
        match self.residual {
            Some(r) => out.copy_from_slice(&r[row * n + first..][..out.len()]),
            None => out.fill(0.0),
        }
        let mut add = |b: &[f32]| out.iter_mut().zip(b).for_each(|(o, b)| *o += b);
        if let Some(b) = self.bias {
            add(&b[first..]);
        }
        if let Some(b) = self.row_bias {
            let run = rows / (b.len() / n);
            add(&b[row / run * n + first..]);
        }
    }
}

/// `y (out_rows, N) = filter(x (in_rows, C)) + epilogue`.
pub(crate) fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], weight: &Packed, geometry: Geometry, epilogue: Epilogue) {
    let FilterDims { n, c, kh, kw } = weight.dims();
    let (micro, rows) = (Micro::detect(), geometry.out_rows());
    assert_eq!((x.len(), y.len()), (geometry.in_rows() * c, rows * n), "operands should have the filter's sizes");
    let start = |out: &mut [f32], row, first| epilogue.start(out, row, rows, first, n);
    let load = |panel, tap, first, block: &mut [f32]| weight.block(micro, panel, tap, first, block);
    if [kh, kw, geometry.stride] == [3, 3, 1] && winograd::pays(&geometry, c) {
        return winograd::run(cpu, y, x, geometry, [n, c], start, load);
    }
    let source = |tap, row| geometry.source(row, [tap / kw, tap % kw]);
    Plan { rows, columns: n, taps: weight.taps(), depth: c }.run(cpu, y, x, start, source, load);
}

/// `dx (in_rows, C) (+)= ` the gradient of `sum(dy * filter(x))`; overwrites unless `accumulate`.
pub(crate) fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], weight: &Packed, geometry: Geometry, accumulate: bool) {
    let FilterDims { n, c, kh, kw } = weight.dims();
    let (micro, rows) = (Micro::detect(), geometry.in_rows());
    assert_eq!((dx.len(), dy.len()), (rows * c, geometry.out_rows() * n), "operands should have the filter's sizes");
    let start = |out: &mut [f32], _, _| {
        if !accumulate {
            out.fill(0.0);
        }
    };
    let load = |panel, tap, first, block: &mut [f32]| weight.block_transposed(micro, panel * LANES, tap, first, block);
    if let Some(reverse) = geometry.reverse([kh, kw]).filter(|r| kh == 3 && winograd::pays(r, n)) {
        let load = |panel, tap, first, block: &mut [f32]| load(panel, kh * kw - 1 - tap, first, block);
        return winograd::run(cpu, dx, dy, reverse, [c, n], start, load);
    }
    let reader = |tap, row| geometry.reader(row, [tap / kw, tap % kw]);
    Plan { rows, columns: c, taps: weight.taps(), depth: n }.run(cpu, dx, dy, start, reader, load);
}

/// `out (rows, columns) += sum over taps of x[source(tap, row)] (depth) * block`.
struct Plan {
    rows: usize,
    columns: usize,
    taps: usize,
    depth: usize,
}

impl Plan {
    /// Most rows of a task: a block of their features stays in the second-level cache.
    const ROWS: usize = 192;
    /// Most panels of a task.
    const PANELS: usize = 20;
    /// Most features of a block: the widened block and six rows stay in the first-level cache.
    const DEPTH: usize = 320;
    /// Tasks to aim at where there is enough to do.
    const TASKS: usize = 16;

    fn run(
        &self,
        cpu: &Cpu,
        out: &mut [f32],
        x: &[f32],
        start: impl Fn(&mut [f32], usize, usize) + Sync,
        source: impl Fn(usize, usize) -> Option<usize> + Sync,
        load: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    ) {
        let micro = Micro::detect();
        let (rows, columns, depth) = (self.rows, self.columns, self.depth);
        if rows == 0 {
            return;
        }
        let panels = columns.div_ceil(LANES);
        let row_step = even(rows, Self::ROWS, ROWS);
        let row_blocks = rows.div_ceil(row_step);
        let panel_step = even(panels, (panels * row_blocks / Self::TASKS).clamp(1, Self::PANELS), 1);
        let panel_blocks = panels.div_ceil(panel_step);
        let depth_step = even(depth, Self::DEPTH, LANES);
        let out = Output::new(out);
        cpu.for_each(row_blocks * panel_blocks, |task| {
            let (row0, panel0) = (task / panel_blocks * row_step, task % panel_blocks * panel_step);
            let row1 = rows.min(row0 + row_step);
            let column1 = columns.min((panel0 + panel_step) * LANES);
            for row in row0..row1 {
                let first = panel0 * LANES;
                // SAFETY: tasks differ in their rows or columns.
                start(unsafe { out.slice(row * columns + first, column1 - first) }, row, first);
            }
            let mut block = cpu.alloc(depth_step * LANES);
            let mut edge = [0.0; ROWS * LANES];
            let mut pairs = Vec::with_capacity(row_step);
            let mut moved = Vec::with_capacity(row_step);
            for tap in 0..self.taps {
                pairs.clear();
                pairs.extend((row0..row1).filter_map(|row| Some(Pair { to: row, from: source(tap, row)? })));
                for first in (0..depth).step_by(depth_step) {
                    let block = &mut block[..depth_step.min(depth - first) * LANES];
                    for panel in panel0..column1.div_ceil(LANES) {
                        load(panel, tap, first, block);
                        let width = LANES.min(columns - panel * LANES);
                        moved.clear();
                        moved.extend(
                            pairs
                                .iter()
                                .map(|p| Pair { to: p.to * columns + panel * LANES, from: p.from * depth + first }),
                        );
                        for pairs in tiles(&moved) {
                            // SAFETY: tasks differ in their rows or columns; `edge` is this task's own.
                            unsafe {
                                if width == LANES {
                                    micro.accumulate(out, x, pairs, block);
                                } else {
                                    accumulate_edge(micro, out, x, pairs, block, &mut edge, width);
                                }
                            }
                        }
                    }
                }
            }
        });
    }
}

/// [`Micro::accumulate`] for a panel of which only the first `width` outputs exist.
///
/// # Safety
/// No other thread may use those elements of `out`.
unsafe fn accumulate_edge(
    micro: Micro,
    out: Output,
    x: &[f32],
    pairs: &[Pair],
    block: &[f32],
    edge: &mut [f32; ROWS * LANES],
    width: usize,
) {
    edge.fill(0.0);
    let mut own = [Pair { to: 0, from: 0 }; ROWS];
    for (i, (own, pair)) in own.iter_mut().zip(pairs).enumerate() {
        *own = Pair { to: i * LANES, from: pair.from };
    }
    // SAFETY: `edge` is borrowed exclusively.
    unsafe { micro.accumulate(Output::new(edge), x, &own[..pairs.len()], block) };
    for (pair, sum) in pairs.iter().zip(edge.chunks(LANES)) {
        // SAFETY: exclusive by contract.
        let to = unsafe { out.slice(pair.to, width) };
        to.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
    }
}

/// Runs of at most [`ROWS`] rows, as even as possible at the end.
pub(super) fn tiles(pairs: &[Pair]) -> impl Iterator<Item = &[Pair]> {
    let mut rest = pairs;
    std::iter::from_fn(move || {
        let take = match rest.len() {
            0 => return None,
            n if n > ROWS && n < 2 * ROWS => n.div_ceil(2),
            n => n.min(ROWS),
        };
        let (tile, more) = rest.split_at(take);
        rest = more;
        Some(tile)
    })
}

/// The step, a multiple of `unit`, that cuts `n` into parts of about `most` and nearly equal size.
pub(super) fn even(n: usize, most: usize, unit: usize) -> usize {
    n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(unit)
}

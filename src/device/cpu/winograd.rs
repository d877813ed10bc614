//! 3x3 filters of stride 1 by Winograd's F(2x2, 3x3): a tile of 2x2 outputs from 4x4 inputs with 16
//! multiplications per channel instead of 36.
//!
//! `Y = A^T [sum over c of (G g G^T) o (B^T d B)] A`, where o multiplies component by component, with
//!
//! ```text
//! B^T = 1  0 -1  0    G =  1    0    0     A^T = 1  1  1  0
//!       0  1  1  0        1/2  1/2  1/2         0  1 -1 -1
//!       0 -1  1  0        1/2 -1/2  1/2
//!       0  1  0 -1         0    0    1
//! ```
//!
//! (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.) A task owns a block of
//! tiles by a run of panels. The filter's transform is computed again for every block of tiles, from the
//! same packed weights as everywhere: it costs a few percent, and no memory.

use multiversion::multiversion;

use super::Cpu;
use super::filter::{Geometry, even, tiles};
use super::micro::{LANES, Micro, Output, Pair};

/// Components of a transformed tile.
const PARTS: usize = 16;
/// Taps of the filter.
const TAPS: usize = 9;
/// Channels that the transforms work on at once.
const WIDTH: usize = 8;
type Lane = [f32; WIDTH];

/// Most tiles of a task.
const TILES: usize = 64;
/// Most numbers of each part of a transformed block: all parts stay in the second-level cache.
const BLOCK: usize = 4096;
/// Most features of a block.
const MAX_DEPTH: usize = 160;
/// Most panels of a task.
const PANELS: usize = 10;
/// Tasks to aim at where there is enough to do.
const TASKS: usize = 8;
/// Below this number of tiles, transforming the filter costs more than it saves.
const MIN_TILES: usize = 12;

/// True if a 3x3 filter of stride 1 with `depth` input features is faster this way.
pub(super) fn pays(geometry: &Geometry, depth: usize) -> bool {
    Tiling::new(*geometry).count() >= MIN_TILES && depth.is_multiple_of(WIDTH) && depth >= 2 * WIDTH
}

/// The 2x2 tiles of an output, image by image.
#[derive(Clone, Copy)]
struct Tiling {
    geometry: Geometry,
    high: usize,
    wide: usize,
}

impl Tiling {
    fn new(geometry: Geometry) -> Self {
        Tiling { geometry, high: geometry.out_height.div_ceil(2), wide: geometry.out_width.div_ceil(2) }
    }

    fn count(&self) -> usize {
        self.geometry.images * self.high * self.wide
    }

    /// Image, row and column of a tile's first output.
    fn corner(&self, tile: usize) -> [usize; 3] {
        let (rest, x) = (tile / self.wide, tile % self.wide);
        [rest / self.high, rest % self.high * 2, x * 2]
    }

    /// The input rows (pixels) of a tile's 4x4 inputs.
    fn sources(&self, tile: usize) -> [Option<usize>; PARTS] {
        let g = self.geometry;
        let [image, y, x] = self.corner(tile);
        std::array::from_fn(|i| {
            let y = (y + i / 4).checked_sub(g.pad_top).filter(|&y| y < g.in_height)?;
            let x = (x + i % 4).checked_sub(g.pad_left).filter(|&x| x < g.in_width)?;
            Some((image * g.in_height + y) * g.in_width + x)
        })
    }

    /// The output rows (pixels) of a tile.
    fn targets(&self, tile: usize) -> [Option<usize>; 4] {
        let g = self.geometry;
        let [image, y, x] = self.corner(tile);
        std::array::from_fn(|i| {
            let (y, x) = (y + i / 2, x + i % 2);
            (y < g.out_height && x < g.out_width).then(|| (image * g.out_height + y) * g.out_width + x)
        })
    }
}

/// `out (out_rows, columns) = start + filter(x (in_rows, depth))`: `start(out, row, first)` fills columns
/// `first ..` of a row, `load(panel, tap, first, block)` gives the weights of a tap.
pub(super) fn run(
    cpu: &Cpu,
    out: &mut [f32],
    x: &[f32],
    geometry: Geometry,
    [columns, depth]: [usize; 2],
    start: impl Fn(&mut [f32], usize, usize) + Sync,
    load: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
) {
    let micro = Micro::detect();
    let tiling = Tiling::new(geometry);
    let tile_step = even(tiling.count(), TILES, 1);
    let tile_blocks = tiling.count().div_ceil(tile_step);
    let panels = columns.div_ceil(LANES);
    let panel_step = even(panels, (panels * tile_blocks / TASKS).clamp(1, PANELS), 1);
    let panel_blocks = panels.div_ceil(panel_step);
    let depth_step = even(depth, (BLOCK / tile_step).min(MAX_DEPTH), LANES);
    let out = Output::new(out);
    cpu.for_each(tile_blocks * panel_blocks, |task| {
        let (first_tile, first_panel) = (task / panel_blocks * tile_step, task % panel_blocks * panel_step);
        let count = tile_step.min(tiling.count() - first_tile);
        let run = first_panel..panels.min(first_panel + panel_step);
        let mut taps = [0.0; TAPS * LANES * LANES];
        let zeros = [0.0; MAX_DEPTH];
        let sums_part = apart(count * LANES);
        let mut inputs = cpu.alloc(PARTS * apart(count * depth_step));
        let mut filter = cpu.alloc(PARTS * apart(depth_step * LANES));
        let mut sums = cpu.alloc(run.len() * PARTS * sums_part); // (panel, part, tile, lane)
        sums.fill(0.0);
        let mut pairs = Vec::with_capacity(count);
        for first in (0..depth).step_by(depth_step) {
            let size = depth_step.min(depth - first);
            let inputs_part = apart(count * size); // (part, tile, feature)
            for tile in 0..count {
                let pixel = |s: Option<usize>| s.map_or(&zeros[..size], |row| &x[row * depth + first..][..size]);
                let pixels = tiling.sources(first_tile + tile).map(pixel);
                transform_input(&mut inputs, inputs_part, tile * size, pixels);
            }
            pairs.clear();
            pairs.extend((0..count).map(|t| Pair { to: t * LANES, from: t * size }));
            let filter_part = apart(size * LANES); // (part, feature, lane)
            for (panel, sums) in run.clone().zip(sums.chunks_mut(PARTS * sums_part)) {
                for at in (0..size).step_by(LANES) {
                    let each = LANES * LANES.min(size - at);
                    let taps = &mut taps[..TAPS * each];
                    taps.chunks_mut(each).enumerate().for_each(|(tap, out)| load(panel, tap, first + at, out));
                    transform_filter(&mut filter, filter_part, at * LANES, taps);
                }
                for (part, sums) in sums.chunks_mut(sums_part).enumerate() {
                    let (inputs, block) =
                        (&inputs[part * inputs_part..], &filter[part * filter_part..][..size * LANES]);
                    let sums = Output::new(sums);
                    for pairs in tiles(&pairs) {
                        // SAFETY: the sums are this task's own.
                        unsafe { micro.accumulate(sums, inputs, pairs, block) };
                    }
                }
            }
        }
        for (panel, sums) in run.clone().zip(sums.chunks(PARTS * sums_part)) {
            let first = panel * LANES;
            let width = LANES.min(columns - first);
            for tile in 0..count {
                let mut result = [0.0; 4 * LANES];
                transform_output(&mut result, sums, sums_part, tile * LANES);
                for (target, result) in tiling.targets(first_tile + tile).into_iter().zip(result.chunks(LANES)) {
                    let Some(row) = target else { continue };
                    // SAFETY: tasks differ in their tiles or panels.
                    let out = unsafe { out.slice(row * columns + first, width) };
                    start(out, row, first);
                    out.iter_mut().zip(result).for_each(|(o, r)| *o += r);
                }
            }
        }
    });
}

/// A distance of at least `size` numbers between parts: an odd number of cache lines, since the sixteen parts
/// of a tile would else compete for the same places in the cache.
fn apart(size: usize) -> usize {
    size.div_ceil(16) * 16 + if size.div_ceil(16).is_multiple_of(2) { 16 } else { 0 }
}

// The lanes are written as loops: closures would not inherit the instruction set of their caller.

#[inline(always)]
fn lane(x: &[f32], at: usize) -> Lane {
    x[at..at + WIDTH].try_into().expect("a lane should have its width")
}

#[inline(always)]
fn put(out: &mut [f32], at: usize, x: Lane) {
    out[at..at + WIDTH].copy_from_slice(&x);
}

#[inline(always)]
fn add(mut a: Lane, b: Lane) -> Lane {
    for i in 0..WIDTH {
        a[i] += b[i];
    }
    a
}

#[inline(always)]
fn sub(mut a: Lane, b: Lane) -> Lane {
    for i in 0..WIDTH {
        a[i] -= b[i];
    }
    a
}

#[inline(always)]
fn half(mut a: Lane) -> Lane {
    for a in &mut a {
        *a *= 0.5;
    }
    a
}

#[inline(always)]
fn times_b([a, b, c, d]: [Lane; 4]) -> [Lane; 4] {
    [sub(a, c), add(b, c), sub(c, b), sub(b, d)]
}

#[inline(always)]
fn times_g([a, b, c]: [Lane; 3]) -> [Lane; 4] {
    let (even, odd) = (half(add(a, c)), half(b));
    [a, add(even, odd), sub(even, odd), c]
}

#[inline(always)]
fn times_a([a, b, c, d]: [Lane; 4]) -> [Lane; 2] {
    [add(add(a, b), c), sub(sub(b, c), d)]
}

/// B^T d B of a tile, over all channels; part p goes to `out[p * stride + at ..]`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn transform_input(out: &mut [f32], stride: usize, at: usize, pixels: [&[f32]; PARTS]) {
    for c in (0..pixels[0].len()).step_by(WIDTH) {
        let mut rows = [[[0.0; WIDTH]; 4]; 4];
        for i in 0..4 {
            let d = [lane(pixels[4 * i], c), lane(pixels[4 * i + 1], c), lane(pixels[4 * i + 2], c)];
            rows[i] = times_b([d[0], d[1], d[2], lane(pixels[4 * i + 3], c)]);
        }
        for j in 0..4 {
            let column = times_b([rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
            for i in 0..4 {
                put(out, (4 * i + j) * stride + at + c, column[i]);
            }
        }
    }
}

/// G g G^T of every weight: `taps` (9, count); part p goes to `out[p * stride + at ..]`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn transform_filter(out: &mut [f32], stride: usize, at: usize, taps: &[f32]) {
    let count = taps.len() / TAPS;
    for k in (0..count).step_by(WIDTH) {
        let mut rows = [[[0.0; WIDTH]; 4]; 3];
        for i in 0..3 {
            let tap = 3 * i * count + k;
            rows[i] = times_g([lane(taps, tap), lane(taps, tap + count), lane(taps, tap + 2 * count)]);
        }
        for j in 0..4 {
            let column = times_g([rows[0][j], rows[1][j], rows[2][j]]);
            for i in 0..4 {
                put(out, (4 * i + j) * stride + at + k, column[i]);
            }
        }
    }
}

/// A^T m A of a tile's panel: `out` (2, 2, LANES); part p is at `sums[p * stride + at ..]`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn transform_output(out: &mut [f32; 4 * LANES], sums: &[f32], stride: usize, at: usize) {
    for k in (0..LANES).step_by(WIDTH) {
        let mut rows = [[[0.0; WIDTH]; 2]; 4];
        for i in 0..4 {
            let m = |j: usize| (4 * i + j) * stride + at + k;
            rows[i] = times_a([lane(sums, m(0)), lane(sums, m(1)), lane(sums, m(2)), lane(sums, m(3))]);
        }
        for j in 0..2 {
            let column = times_a([rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
            for i in 0..2 {
                put(out, (2 * i + j) * LANES + k, column[i]);
            }
        }
    }
}

//! One pixel and head at a time, by the tiles of spatial attention: the frames of a pixel are the queries of
//! one panel, or two.

use multiversion::multiversion;
use multiversion::target::match_target;

use super::Dims;
use crate::device::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::lanes::Avx2;
use crate::device::cpu::lanes::{Lanes, Portable};
use crate::device::cpu::parts::Scatter;
use crate::device::cpu::tile::{self, Left, QUERIES};

/// Pixels of one task.
const PIXELS: usize = 8;

impl Dims {
    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// Numbers from one frame of a pixel to the next.
    fn frame_step(&self) -> usize {
        self.n * self.heads * self.d
    }

    /// `rows` packed rows, as numbers.
    fn packed(&self, rows: usize) -> usize {
        rows * tile::padded(self.d)
    }

    fn tasks(&self) -> usize {
        self.videos * self.n.div_ceil(PIXELS)
    }

    /// Offsets of the first frame's numbers of every pixel and head of a task.
    fn heads_of(self, task: usize) -> impl Iterator<Item = usize> {
        let each = self.n.div_ceil(PIXELS);
        let (video, first) = (task / each, task % each * PIXELS);
        let pixels = first..self.n.min(first + PIXELS);
        let offset = move |pixel, head| ((video * self.frames * self.n + pixel) * self.heads + head) * self.d;
        pixels.flat_map(move |pixel| (0..self.heads).map(move |head| offset(pixel, head)))
    }

    /// Frame `frame` of the pixel and head at `first`.
    fn row<'a>(&self, x: &'a [f32], first: usize, frame: usize) -> &'a [f32] {
        &x[first + frame * self.frame_step()..][..self.d]
    }

    /// The frames as rows of a left factor, where they are.
    fn rows<'a>(&self, x: &'a [f32], first: usize) -> Left<'a> {
        Left { data: &x[first..], row_step: self.frame_step(), k_step: 1 }
    }

    /// Writes packed rows, times `scale(row)`, from frame `frame` on.
    ///
    /// # Safety
    /// No other thread may use this pixel.
    unsafe fn store(&self, out: &Scatter, x: &[f32], first: usize, frame: usize, scale: impl Fn(usize) -> f32) {
        for (i, x) in x.chunks_exact(tile::padded(self.d)).enumerate() {
            // SAFETY: by contract.
            let to = unsafe { out.run(first + (frame + i) * self.frame_step(), self.d) };
            to.iter_mut().zip(x).for_each(|(to, x)| *to = scale(i) * x);
        }
    }
}

pub(super) fn forward(cpu: &Cpu, out: &mut [f32], [q, k, v]: [&[f32]; 3], dims: Dims) {
    let out = Scatter::new(out);
    let (d, frames) = (dims.d, dims.frames);
    cpu.for_each(dims.tasks(), |task| {
        let mut queries = vec![0.0; d * QUERIES];
        let mut scores = vec![0.0; frames * QUERIES];
        let mut values = vec![0.0; dims.packed(frames)];
        let mut sums = vec![0.0; dims.packed(QUERIES)];
        for first in dims.heads_of(task) {
            tile::pack_rows(&mut values, d, frames, 1.0, |f| dims.row(v, first, f));
            for start in (0..frames).step_by(QUERIES) {
                let rows = QUERIES.min(frames - start);
                tile::pack_panel(&mut queries, rows, dims.scale(), |f| dims.row(q, first, start + f));
                let inverse = attend(&mut sums, &mut scores, &queries, dims.rows(k, first), &values);
                // SAFETY: a task has pixels of its own.
                unsafe { dims.store(&out, &sums[..dims.packed(rows)], first, start, |i| inverse[i]) };
            }
        }
    });
}

/// The sums of values, yet to be multiplied by what is returned.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn attend(sums: &mut [f32], scores: &mut [f32], queries: &[f32], keys: Left, values: &[f32]) -> [f32; QUERIES] {
    #[inline(always)]
    fn generic<L: Lanes>(
        sums: &mut [f32],
        scores: &mut [f32],
        queries: &[f32],
        keys: Left,
        values: &[f32],
    ) -> [f32; QUERIES] {
        tile::scores::<L>(scores, keys, queries);
        let inverse = tile::softmax::<L>(scores);
        let p = Left { data: scores, row_step: 1, k_step: QUERIES };
        tile::product::<L, false>(sums, p, values, sums.len() / QUERIES);
        bytemuck::cast([inverse[0].array(), inverse[1].array()])
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(sums, scores, queries, keys, values),
        _ => generic::<Portable>(sums, scores, queries, keys, values),
    }
}

/// A pixel's head and a panel of its queries, packed in rows and side by side, with room for the gradients.
struct Work {
    key_rows: Vec<f32>,
    query_rows: Vec<f32>,
    query_side: Vec<f32>,
    dout_rows: Vec<f32>,
    dout_side: Vec<f32>,
    p: Vec<f32>,
    ds: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

pub(super) fn backward(cpu: &Cpu, outputs: [&mut [f32]; 3], [q, k, v, dout]: [&[f32]; 4], dims: Dims) {
    let [dq, dk, dv] = outputs.map(Scatter::new);
    let (d, frames) = (dims.d, dims.frames);
    cpu.for_each(dims.tasks(), |task| {
        let zeros = |len| vec![0.0; len];
        let mut work = Work {
            key_rows: zeros(dims.packed(frames)),
            query_rows: zeros(dims.packed(QUERIES)),
            query_side: zeros(d * QUERIES),
            dout_rows: zeros(dims.packed(QUERIES)),
            dout_side: zeros(d * QUERIES),
            p: zeros(frames * QUERIES),
            ds: zeros(frames * QUERIES),
            dq: zeros(dims.packed(QUERIES)),
            dk: zeros(dims.packed(frames)),
            dv: zeros(dims.packed(frames)),
        };
        for first in dims.heads_of(task) {
            tile::pack_rows(&mut work.key_rows, d, frames, 1.0, |f| dims.row(k, first, f));
            work.dk.fill(0.0);
            work.dv.fill(0.0);
            for start in (0..frames).step_by(QUERIES) {
                let rows = QUERIES.min(frames - start);
                let (query, dout) = (|f| dims.row(q, first, start + f), |f| dims.row(dout, first, start + f));
                tile::pack_rows(&mut work.query_rows, d, rows, dims.scale(), query);
                tile::pack_panel(&mut work.query_side, rows, dims.scale(), query);
                tile::pack_rows(&mut work.dout_rows, d, rows, 1.0, dout);
                tile::pack_panel(&mut work.dout_side, rows, 1.0, dout);
                panel_backward(&mut work, dims.rows(k, first), dims.rows(v, first));
                // SAFETY: a task has pixels of its own.
                unsafe { dims.store(&dq, &work.dq[..dims.packed(rows)], first, start, |_| dims.scale()) };
            }
            // SAFETY: as above.
            unsafe {
                dims.store(&dk, &work.dk, first, 0, |_| 1.0);
                dims.store(&dv, &work.dv, first, 0, |_| 1.0);
            }
        }
    });
}

/// Adds to dk and dv; `dq` lacks the factor s.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn panel_backward(work: &mut Work, keys: Left, values: Left) {
    #[inline(always)]
    fn generic<L: Lanes>(work: &mut Work, keys: Left, values: Left) {
        let step = work.dq.len() / QUERIES;
        tile::scores::<L>(&mut work.p, keys, &work.query_side);
        let inverse = tile::softmax::<L>(&mut work.p);
        tile::scale(&mut work.p, inverse);
        tile::add_transposed::<L>(&mut work.dv, &work.p, &work.dout_rows, step);
        tile::scores::<L>(&mut work.ds, values, &work.dout_side);
        tile::softmax_backward::<L>(&mut work.ds, &work.p);
        tile::add_transposed::<L>(&mut work.dk, &work.ds, &work.query_rows, step);
        let ds = Left { data: &work.ds, row_step: 1, k_step: QUERIES };
        tile::product::<L, false>(&mut work.dq, ds, &work.key_rows, step);
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(work, keys, values),
        _ => generic::<Portable>(work, keys, values),
    }
}

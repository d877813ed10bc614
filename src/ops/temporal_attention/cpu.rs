//! One pixel and head at a time, from copies that fit the first cache. Scores are kept transposed, (keys,
//! queries), and padded to T queries, so that the softmax runs down columns with one query per lane.

use multiversion::multiversion;

use super::{Dims, MAX_FRAMES};
use crate::device::Cpu;
use crate::device::cpu::math;
use crate::device::cpu::parts::Scatter;

/// Pixels of one task.
const PIXELS: usize = 8;

impl Dims {
    fn c(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// Calls `task` with the offset of the first frame's numbers of every pixel and head.
    fn for_each_head(&self, cpu: &Cpu, task: impl Fn(usize) + Sync + Send) {
        let each = self.n.div_ceil(PIXELS);
        cpu.for_each(self.videos * each, |i| {
            let (video, first) = (i / each, i % each * PIXELS);
            for pixel in first..self.n.min(first + PIXELS) {
                for head in 0..self.heads {
                    task((video * self.frames * self.n + pixel) * self.c() + head * self.d);
                }
            }
        });
    }

    fn at(&self, first: usize, frame: usize) -> usize {
        first + frame * self.n * self.c()
    }

    fn load(&self, x: &[f32], first: usize) -> Vec<f32> {
        (0..self.frames).flat_map(|f| &x[self.at(first, f)..][..self.d]).copied().collect()
    }

    fn store(&self, out: &Scatter, x: &[f32], first: usize) {
        for (f, x) in x.chunks_exact(self.d).enumerate() {
            // SAFETY: a task has pixels of its own.
            unsafe { out.run(self.at(first, f), self.d) }.copy_from_slice(x);
        }
    }
}

pub(super) fn forward(cpu: &Cpu, out: &mut [f32], inputs: [&[f32]; 3], dims: Dims) {
    let out = Scatter::new(out);
    dims.for_each_head(cpu, |first| {
        let [q, k, v] = inputs.map(|x| dims.load(x, first));
        let mut y = vec![0.0; q.len()];
        head_forward(&mut y, &q, &k, &v, dims);
        dims.store(&out, &y, first);
    });
}

pub(super) fn backward(cpu: &Cpu, outputs: [&mut [f32]; 3], inputs: [&[f32]; 4], dims: Dims) {
    let outputs = outputs.map(Scatter::new);
    dims.for_each_head(cpu, |first| {
        let [q, k, v, dout] = inputs.map(|x| dims.load(x, first));
        let mut grads = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; q.len()]];
        head_backward(&mut grads, [&q, &k, &v, &dout], dims);
        outputs.iter().zip(&grads).for_each(|(out, grad)| dims.store(out, grad, first));
    });
}

type Scores = [[f32; MAX_FRAMES]; MAX_FRAMES];

/// `scores[j][i] = sum_d x[j][d] y[i][d]`.
#[inline(always)]
fn products(x: &[f32], y: &[f32], d: usize) -> Scores {
    let mut scores = [[0.0; MAX_FRAMES]; MAX_FRAMES];
    for (x, scores) in x.chunks_exact(d).zip(&mut scores) {
        for (y, score) in y.chunks_exact(d).zip(scores) {
            *score = math::dot(x, y);
        }
    }
    scores
}

/// Softmax down the first `keys` entries of every column, of `scale` times the scores.
#[inline(always)]
fn softmax(scores: &mut Scores, keys: usize, scale: f32) {
    let mut max = [f32::NEG_INFINITY; MAX_FRAMES];
    for row in &scores[..keys] {
        for (max, &s) in max.iter_mut().zip(row) {
            *max = if s > *max { s } else { *max };
        }
    }
    let mut sum = [0.0; MAX_FRAMES];
    for row in &mut scores[..keys] {
        for ((s, max), sum) in row.iter_mut().zip(&max).zip(&mut sum) {
            *s = math::exp(scale * (*s - max));
            *sum += *s;
        }
    }
    for row in &mut scores[..keys] {
        row.iter_mut().zip(&sum).for_each(|(s, sum)| *s /= sum);
    }
}

/// `out[i] = sum_j weights(i, j) x[j]`.
#[inline(always)]
fn combine(out: &mut [f32], x: &[f32], d: usize, weight: impl Fn(usize, usize) -> f32) {
    for (i, out) in out.chunks_exact_mut(d).enumerate() {
        out.fill(0.0);
        for (j, x) in x.chunks_exact(d).enumerate() {
            let w = weight(i, j);
            out.iter_mut().zip(x).for_each(|(o, x)| *o = w.mul_add(*x, *o));
        }
    }
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn head_forward(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], dims: Dims) {
    let mut p = products(k, q, dims.d);
    softmax(&mut p, dims.frames, dims.scale());
    combine(out, v, dims.d, |i, j| p[j][i]);
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn head_backward(grads: &mut [Vec<f32>; 3], [q, k, v, dout]: [&[f32]; 4], dims: Dims) {
    let Dims { frames, d, .. } = dims;
    let [dq, dk, dv] = grads;
    let mut p = products(k, q, d);
    softmax(&mut p, frames, dims.scale());
    combine(dv, dout, d, |j, i| p[j][i]);
    let mut ds = products(v, dout, d);
    let mut mean = [0.0; MAX_FRAMES];
    for (p, dp) in p.iter().zip(&ds).take(frames) {
        for ((mean, p), dp) in mean.iter_mut().zip(p).zip(dp) {
            *mean = p.mul_add(*dp, *mean);
        }
    }
    for (p, ds) in p.iter().zip(&mut ds).take(frames) {
        for ((ds, p), mean) in ds.iter_mut().zip(p).zip(&mean) {
            *ds = dims.scale() * p * (*ds - mean);
        }
    }
    combine(dq, k, d, |i, j| ds[j][i]);
    combine(dk, q, d, |j, i| ds[j][i]);
}

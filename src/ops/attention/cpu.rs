use multiversion::multiversion;

use super::{Dims, Mask};
use crate::device::Cpu;
use crate::device::cpu::gemm::{Mat, gemm};
use crate::device::cpu::math;
use crate::device::cpu::parts::Scatter;

impl Dims {
    fn c(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// Query rows of a block: its scores fill about 128 KiB.
    fn block(&self) -> usize {
        (32768 / self.l).clamp(16, 256).min(self.m.max(1))
    }

    fn blocks(&self) -> usize {
        self.m.div_ceil(self.block())
    }

    /// One head of `rows` rows from row `row` on.
    fn head<'a>(&self, x: &'a [f32], row: usize, rows: usize, head: usize) -> Mat<'a> {
        let end = (row + rows) * self.c();
        Mat::new(&x[row * self.c() + head * self.d..end], rows, self.d, self.c())
    }
}

pub(super) fn forward(cpu: &Cpu, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], dims: Dims) {
    let out = Scatter::new(out);
    cpu.for_each(dims.batches * dims.blocks(), |task| {
        let (batch, first) = (task / dims.blocks(), task % dims.blocks() * dims.block());
        let rows = dims.block().min(dims.m - first);
        let row = batch * dims.m + first;
        // SAFETY: every task has query rows of its own.
        let out = unsafe { out.run(row * dims.c(), rows * dims.c()) };
        let mut scores = cpu.alloc(rows * dims.l);
        for head in 0..dims.heads {
            let block = Block { dims, row, rows, first, head, kv_row: kv_row(dims, batch) };
            let keys = block.probabilities(&mut scores, q, k);
            let p = Mat::new(&scores, rows, keys, keys);
            gemm(&mut out[head * dims.d..], dims.c(), 0.0, 1.0, p, dims.head(v, block.kv_row, keys, head));
        }
    });
}

/// First row of the keys that serve a batch of queries.
fn kv_row(dims: Dims, batch: usize) -> usize {
    batch / (dims.batches / dims.kv_batches) * dims.l
}

/// `rows` query rows of one head, from `row` overall and from `first` within their batch.
struct Block {
    dims: Dims,
    row: usize,
    rows: usize,
    first: usize,
    head: usize,
    kv_row: usize,
}

impl Block {
    /// Keys that some row of the block sees.
    fn keys(&self) -> usize {
        match self.dims.mask {
            Mask::None => self.dims.l,
            Mask::Causal => self.first + self.rows,
        }
    }

    /// Fills `p` with (rows, keys) and returns the number of keys.
    fn probabilities(&self, p: &mut [f32], q: &[f32], k: &[f32]) -> usize {
        let keys = self.keys();
        let q = self.dims.head(q, self.row, self.rows, self.head);
        let k = self.dims.head(k, self.kv_row, keys, self.head);
        let p = &mut p[..self.rows * keys];
        gemm(p, keys, 0.0, self.dims.scale(), q, k.t());
        for (i, p) in p.chunks_exact_mut(keys).enumerate() {
            let seen = match self.dims.mask {
                Mask::None => keys,
                Mask::Causal => self.first + i + 1,
            };
            let (seen, hidden) = p.split_at_mut(seen);
            softmax(seen);
            hidden.fill(0.0);
        }
        keys
    }
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn softmax(x: &mut [f32]) {
    let max = math::max(x);
    x.iter_mut().for_each(|x| *x = math::exp(*x - max));
    let scale = 1.0 / math::sum_of(x, |x| x);
    x.iter_mut().for_each(|x| *x *= scale);
}

/// `dS / s = P (dP - sum P dP)` over dP.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn softmax_backward(dp: &mut [f32], p: &[f32]) {
    let mean = math::dot(p, dp);
    dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - mean));
}

pub(super) fn backward(cpu: &Cpu, outputs: [Option<&mut [f32]>; 3], dout: &[f32], [q, k, v]: [&[f32]; 3], dims: Dims) {
    let [dq, dk, dv] = outputs.map(|o| o.map(Scatter::new));
    let (l, d) = (dims.l, dims.d);
    // One task owns a head of one batch of keys and of all queries it serves.
    cpu.for_each(dims.kv_batches * dims.heads, |task| {
        let (kv_batch, head) = (task / dims.heads, task % dims.heads);
        let each = dims.batches / dims.kv_batches;
        let mut p = cpu.alloc(dims.block() * l);
        let mut ds = cpu.alloc(dims.block() * l);
        let mut part = cpu.alloc(dims.block() * d);
        let zeros = |wanted: bool| {
            let mut sum = cpu.alloc(if wanted { l * d } else { 0 });
            sum.fill(0.0);
            sum
        };
        let (mut key_sum, mut value_sum) = (zeros(dk.is_some()), zeros(dv.is_some()));
        for (batch, index) in
            (kv_batch * each..(kv_batch + 1) * each).flat_map(|b| (0..dims.blocks()).map(move |i| (b, i)))
        {
            let first = index * dims.block();
            let rows = dims.block().min(dims.m - first);
            let block = Block { dims, row: batch * dims.m + first, rows, first, head, kv_row: kv_batch * l };
            let keys = block.probabilities(&mut p, q, k);
            let p_mat = Mat::new(&p, rows, keys, keys);
            let dout = dims.head(dout, block.row, rows, head);
            if dv.is_some() {
                gemm(&mut value_sum, d, 1.0, 1.0, p_mat.t(), dout);
            }
            if dq.is_none() && dk.is_none() {
                continue;
            }
            gemm(&mut ds, keys, 0.0, 1.0, dout, dims.head(v, block.kv_row, keys, head).t());
            ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)).take(rows).for_each(|(ds, p)| softmax_backward(ds, p));
            let ds_mat = Mat::new(&ds, rows, keys, keys);
            if dk.is_some() {
                gemm(&mut key_sum, d, 1.0, dims.scale(), ds_mat.t(), dims.head(q, block.row, rows, head));
            }
            if let Some(dq) = &dq {
                gemm(&mut part, d, 0.0, dims.scale(), ds_mat, dims.head(k, block.kv_row, keys, head));
                store(dq, &part[..rows * d], block.row, head, dims);
            }
        }
        let mut finish = |out: &Option<Scatter>, sum: &[f32]| {
            if let Some(out) = out {
                store(out, sum, kv_batch * l, head, dims);
            }
        };
        finish(&dk, &key_sum);
        finish(&dv, &value_sum);
    });
}

/// Writes the rows of one head, from row `row` on.
fn store(out: &Scatter, x: &[f32], row: usize, head: usize, dims: Dims) {
    for (i, x) in x.chunks_exact(dims.d).enumerate() {
        // SAFETY: a task owns its head of its rows.
        unsafe { out.run((row + i) * dims.c() + head * dims.d, dims.d) }.copy_from_slice(x);
    }
}

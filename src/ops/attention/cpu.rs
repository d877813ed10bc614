//! Panels of sixteen queries at a time, against a head's keys and values, packed once for many panels.

use multiversion::multiversion;
use multiversion::target::match_target;

use super::{Dims, Mask};
use crate::device::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::lanes::Avx2;
use crate::device::cpu::lanes::{Lanes, Portable};
use crate::device::cpu::parts::Scatter;
use crate::device::cpu::tile::{self, Left, QUERIES};

/// Queries of one task of the forward pass.
const TASK: usize = 16 * QUERIES;

impl Dims {
    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// `rows` packed rows of a head, as numbers.
    fn packed(&self, rows: usize) -> usize {
        rows * tile::padded(self.d)
    }

    /// Row `row` of a head.
    fn row<'a>(&self, x: &'a [f32], row: usize, head: usize) -> &'a [f32] {
        &x[row * self.heads * self.d + head * self.d..][..self.d]
    }

    /// Query batches that a batch of keys serves.
    fn served(&self) -> usize {
        self.batches / self.kv_batches
    }

    /// Keys that the panel of queries from `first` on sees.
    fn keys(&self, first: usize) -> usize {
        match self.mask {
            Mask::None => self.l,
            Mask::Causal => self.l.min(first + QUERIES),
        }
    }

    /// Hides keys from the panel of queries from `first` on.
    fn hide(&self, scores: &mut [f32], first: usize) {
        if self.mask == Mask::Causal {
            for (key, row) in scores.chunks_exact_mut(QUERIES).enumerate().skip(first + 1) {
                row[..key - first].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Writes packed rows, times `scale(row)`, into one head from row `row` on.
    ///
    /// # Safety
    /// No other thread may use this head of these rows.
    unsafe fn store(&self, out: &Scatter, x: &[f32], row: usize, head: usize, scale: impl Fn(usize) -> f32) {
        for (i, x) in x.chunks_exact(tile::padded(self.d)).enumerate() {
            // SAFETY: by contract.
            let to = unsafe { out.run((row + i) * self.heads * self.d + head * self.d, self.d) };
            to.iter_mut().zip(x).for_each(|(to, x)| *to = scale(i) * x);
        }
    }
}

pub(super) fn forward(cpu: &Cpu, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], dims: Dims) {
    let out = Scatter::new(out);
    let tasks = dims.m.div_ceil(TASK);
    let d = dims.d;
    cpu.for_each(dims.batches * dims.heads * tasks, |task| {
        let (head, start) = (task / tasks, task % tasks * TASK);
        let (batch, head) = (head / dims.heads, head % dims.heads);
        let kv_row = batch / dims.served() * dims.l;
        let [mut keys, mut values] = [(); 2].map(|()| cpu.alloc(dims.packed(dims.l)));
        tile::pack_rows(&mut keys, d, dims.l, 1.0, |i| dims.row(k, kv_row + i, head));
        tile::pack_rows(&mut values, d, dims.l, 1.0, |i| dims.row(v, kv_row + i, head));
        let mut queries = vec![0.0; d * QUERIES];
        let mut scores = cpu.alloc(dims.l * QUERIES);
        let mut sums = vec![0.0; dims.packed(QUERIES)];
        for first in (start..dims.m.min(start + TASK)).step_by(QUERIES) {
            let rows = QUERIES.min(dims.m - first);
            let row = batch * dims.m + first;
            tile::pack_panel(&mut queries, rows, dims.scale(), |i| dims.row(q, row + i, head));
            let seen = dims.keys(first);
            let scores = &mut scores[..seen * QUERIES];
            products(scores, &keys, &queries, d);
            dims.hide(scores, first);
            sums.fill(0.0);
            let inverse = weigh(&mut sums, scores, &values[..dims.packed(seen)], tile::padded(d));
            // SAFETY: a task has query rows and a head of its own.
            unsafe { dims.store(&out, &sums[..dims.packed(rows)], row, head, |i| inverse[i]) };
        }
    });
}

/// `scores[key][query] = sum over d of keys[key][d] queries[d][query]`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn products(scores: &mut [f32], keys: &[f32], queries: &[f32], d: usize) {
    let keys = Left { data: keys, row_step: tile::padded(d), k_step: 1 };
    match_target! {
        "x86_64+avx2+fma" => tile::scores::<Avx2>(scores, keys, queries),
        _ => tile::scores::<Portable>(scores, keys, queries),
    }
}

/// Softmax over `scores` and the sums of values, yet to be multiplied by what is returned.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn weigh(sums: &mut [f32], scores: &mut [f32], values: &[f32], step: usize) -> [f32; QUERIES] {
    #[inline(always)]
    fn generic<L: Lanes>(sums: &mut [f32], scores: &mut [f32], values: &[f32], step: usize) -> [f32; QUERIES] {
        let inverse = tile::softmax::<L>(scores);
        tile::add_weighted::<L>(sums, scores, values, step);
        bytemuck::cast([inverse[0].array(), inverse[1].array()])
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(sums, scores, values, step),
        _ => generic::<Portable>(sums, scores, values, step),
    }
}

/// One head of one batch of keys, packed, and its gradients, empty if not wanted.
struct Head<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// A panel of queries, packed in rows and side by side, and its gradient, empty if not wanted.
struct Queries {
    rows: Vec<f32>,
    side: Vec<f32>,
    dout_rows: Vec<f32>,
    dout_side: Vec<f32>,
    dq: Vec<f32>,
}

pub(super) fn backward(cpu: &Cpu, outputs: [Option<&mut [f32]>; 3], dout: &[f32], [q, k, v]: [&[f32]; 3], dims: Dims) {
    let [dq, dk, dv] = outputs.map(|o| o.map(Scatter::new));
    let (d, l) = (dims.d, dims.l);
    // One task owns a head of one batch of keys and of all queries it serves.
    cpu.for_each(dims.kv_batches * dims.heads, |task| {
        let (kv_batch, head) = (task / dims.heads, task % dims.heads);
        let of = |x, first| move |i| dims.row(x, first + i, head);
        let packed = |x| {
            let mut out = cpu.alloc(dims.packed(l));
            tile::pack_rows(&mut out, d, l, 1.0, of(x, kv_batch * l));
            out
        };
        let zeros = |wanted: bool| {
            let mut out = cpu.alloc(if wanted { dims.packed(l) } else { 0 });
            out.fill(0.0);
            out
        };
        let (keys, values, mut dk_sum, mut dv_sum) = (packed(k), packed(v), zeros(dk.is_some()), zeros(dv.is_some()));
        let mut kept = Head { keys: &keys, values: &values, dk: &mut dk_sum, dv: &mut dv_sum };
        let [rows, dout_rows, dq_sum] =
            [true, true, dq.is_some()].map(|wanted| vec![0.0; dims.packed(QUERIES) * usize::from(wanted)]);
        let [side, dout_side] = [(); 2].map(|()| vec![0.0; d * QUERIES]);
        let mut panel = Queries { rows, side, dout_rows, dout_side, dq: dq_sum };
        let [mut p, mut ds] = [(); 2].map(|()| cpu.alloc(l * QUERIES));
        let batches = kv_batch * dims.served()..(kv_batch + 1) * dims.served();
        for (batch, first) in batches.flat_map(|b| (0..dims.m).step_by(QUERIES).map(move |i| (b, i))) {
            let rows = QUERIES.min(dims.m - first);
            let row = batch * dims.m + first;
            tile::pack_panel(&mut panel.side, rows, dims.scale(), of(q, row));
            tile::pack_rows(&mut panel.rows, d, rows, dims.scale(), of(q, row));
            tile::pack_panel(&mut panel.dout_side, rows, 1.0, of(dout, row));
            tile::pack_rows(&mut panel.dout_rows, d, rows, 1.0, of(dout, row));
            let seen = dims.keys(first) * QUERIES;
            products(&mut p[..seen], kept.keys, &panel.side, d);
            dims.hide(&mut p[..seen], first);
            panel_backward(&mut kept, &mut panel, &mut p[..seen], &mut ds[..seen], d);
            if let Some(dq) = &dq {
                // SAFETY: a task has query batches and a head of its own.
                unsafe { dims.store(dq, &panel.dq[..dims.packed(rows)], row, head, |_| dims.scale()) };
            }
        }
        for (out, sum) in [(&dk, &dk_sum), (&dv, &dv_sum)] {
            if let Some(out) = out {
                // SAFETY: a task has a batch of keys and a head of its own.
                unsafe { dims.store(out, sum, kv_batch * l, head, |_| 1.0) };
            }
        }
    });
}

/// From scores `p` to the gradients; `dq` lacks the factor s.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn panel_backward(head: &mut Head, queries: &mut Queries, p: &mut [f32], ds: &mut [f32], d: usize) {
    #[inline(always)]
    fn generic<L: Lanes>(head: &mut Head, queries: &mut Queries, p: &mut [f32], ds: &mut [f32], d: usize) {
        let step = tile::padded(d);
        let seen = p.len() / QUERIES * step;
        let inverse = tile::softmax::<L>(p);
        tile::scale(p, inverse);
        if !head.dv.is_empty() {
            tile::add_transposed::<L>(&mut head.dv[..seen], p, &queries.dout_rows, step);
        }
        if head.dk.is_empty() && queries.dq.is_empty() {
            return;
        }
        tile::scores::<L>(ds, Left { data: head.values, row_step: step, k_step: 1 }, &queries.dout_side);
        tile::softmax_backward::<L>(ds, p);
        if !head.dk.is_empty() {
            tile::add_transposed::<L>(&mut head.dk[..seen], ds, &queries.rows, step);
        }
        if !queries.dq.is_empty() {
            queries.dq.fill(0.0);
            tile::add_weighted::<L>(&mut queries.dq, ds, &head.keys[..seen], step);
        }
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(head, queries, p, ds, d),
        _ => generic::<Portable>(head, queries, p, ds, d),
    }
}

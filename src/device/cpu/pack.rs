//! Frozen weights in the order the kernels read them: panels of [`LANES`] outputs, and in a panel, for every
//! tap and input channel, the panel's outputs side by side: `(N / LANES, kh * kw, C, LANES)`. The last panel
//! is filled up with zeros.

use half::f16;

use super::Cpu;
use super::FilterDims;
use super::gemm::{Mat, gemm};
use super::micro::{LANES, Micro};
use crate::{DType, HostData};

/// A packed weight.
pub(crate) struct Packed {
    dims: FilterDims,
    numbers: Numbers,
}

enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Packed {
    /// Packs (N, C, kh, kw) numbers.
    pub(crate) fn new(cpu: &Cpu, dims: FilterDims, data: &HostData) -> Self {
        let numbers = match data {
            HostData::F32(x) => Numbers::F32(pack(cpu, dims, x, 0.0)),
            HostData::F16(x) => Numbers::F16(pack(cpu, dims, x, f16::ZERO)),
        };
        Packed { dims, numbers }
    }

    /// The same weight in f32, plus `scale * up (N,R) down (R, C kh kw)`.
    pub(crate) fn merged(&self, cpu: &Cpu, down: &[f32], up: &[f32], scale: f32) -> Self {
        let FilterDims { n, c, .. } = self.dims;
        let (taps, size) = (self.taps(), self.panel_size());
        let k = taps * c;
        let r = up.len() / n;
        let micro = Micro::detect();
        let mut sum = vec![0.0; self.panels() * size];
        cpu.chunks_mut(&mut sum, size, |p, panel| {
            self.widen(micro, p * size, panel);
            let lanes = LANES.min(n - p * LANES);
            let up = Mat::new(&up[p * LANES * r..], lanes, r, r);
            for (tap, out) in panel.chunks_mut(c * LANES).enumerate() {
                let down = Mat { data: &down[tap..], rows: r, columns: c, row_stride: k, column_stride: taps };
                gemm(out, LANES, 1.0, scale, down.t(), up.t());
            }
        });
        Packed { dims: self.dims, numbers: Numbers::F32(sum) }
    }

    /// The numbers as f32 in checkpoint order (N, C, kh, kw).
    pub(crate) fn unpack(&self, cpu: &Cpu) -> Vec<f32> {
        let FilterDims { n, c, .. } = self.dims;
        let (taps, size) = (self.taps(), self.panel_size());
        let k = taps * c;
        let micro = Micro::detect();
        let mut out = vec![0.0; n * k];
        cpu.chunks_mut(&mut out, LANES * k, |p, out| {
            let mut panel = cpu.alloc(size);
            self.widen(micro, p * size, &mut panel);
            for (i, lanes) in panel.chunks(LANES).enumerate() {
                let at = i % c * taps + i / c;
                out.chunks_mut(k).zip(lanes).for_each(|(row, &v)| row[at] = v);
            }
        });
        out
    }

    pub(crate) fn dims(&self) -> FilterDims {
        self.dims
    }

    pub(crate) fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F32(_) => DType::F32,
            Numbers::F16(_) => DType::F16,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels() * self.panel_size() * self.dtype().size()
    }

    pub(super) fn taps(&self) -> usize {
        self.dims.kh * self.dims.kw
    }

    fn panels(&self) -> usize {
        self.dims.n.div_ceil(LANES)
    }

    fn panel_size(&self) -> usize {
        self.taps() * self.dims.c * LANES
    }

    /// Block `(channels, LANES)` for `out.len() / LANES` input channels from `first` on, as f32.
    pub(super) fn block(&self, micro: Micro, panel: usize, tap: usize, first: usize, out: &mut [f32]) {
        self.widen(micro, panel * self.panel_size() + (tap * self.dims.c + first) * LANES, out);
    }

    /// The transposed block `(outputs, LANES)`: for `out.len() / LANES` outputs from `first` on, the input
    /// channels `channel .. channel + LANES` side by side, zero past the last.
    ///
    /// `first` must be a multiple of [`LANES`].
    pub(super) fn block_transposed(&self, micro: Micro, channel: usize, tap: usize, first: usize, out: &mut [f32]) {
        let count = LANES.min(self.dims.c - channel);
        let row = tap * self.dims.c + channel;
        for (i, out) in out.chunks_mut(LANES * LANES).enumerate() {
            let start = (first / LANES + i) * self.panel_size() + row * LANES;
            if count == LANES && out.len() == LANES * LANES {
                match &self.numbers {
                    Numbers::F16(x) => micro.widen_transposed(out, &x[start..][..LANES * LANES]),
                    Numbers::F32(x) => micro.transpose(out, &x[start..][..LANES * LANES]),
                }
                continue;
            }
            for (lane, out) in out.chunks_mut(LANES).enumerate() {
                out.fill(0.0);
                let at = |j: usize| start + j * LANES + lane;
                match &self.numbers {
                    Numbers::F16(x) => out.iter_mut().take(count).enumerate().for_each(|(j, o)| *o = x[at(j)].to_f32()),
                    Numbers::F32(x) => out.iter_mut().take(count).enumerate().for_each(|(j, o)| *o = x[at(j)]),
                }
            }
        }
    }

    fn widen(&self, micro: Micro, start: usize, out: &mut [f32]) {
        match &self.numbers {
            Numbers::F32(x) => out.copy_from_slice(&x[start..][..out.len()]),
            Numbers::F16(x) => micro.widen(out, &x[start..][..out.len()]),
        }
    }
}

fn pack<T: Copy + Send + Sync>(cpu: &Cpu, dims: FilterDims, x: &[T], zero: T) -> Vec<T> {
    let (c, taps) = (dims.c, dims.kh * dims.kw);
    let k = taps * c;
    let mut out = vec![zero; dims.n.div_ceil(LANES) * k * LANES];
    cpu.chunks_mut(&mut out, k * LANES, |p, panel| {
        let rows = &x[p * LANES * k..];
        let lanes = LANES.min(dims.n - p * LANES);
        for (channel, tap) in (0..c).flat_map(|channel| (0..taps).map(move |tap| (channel, tap))) {
            let to = &mut panel[(tap * c + channel) * LANES..][..lanes];
            to.iter_mut().enumerate().for_each(|(lane, to)| *to = rows[lane * k + channel * taps + tap]);
        }
    });
    out
}

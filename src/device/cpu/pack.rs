//! Frozen weights in the order the kernels read them: (N, kh, kw, C).

use half::f16;

use super::Cpu;
use crate::weight::FilterDims;
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
    pub(crate) fn new(_cpu: &Cpu, dims: FilterDims, data: &HostData) -> Self {
        let numbers = match data {
            HostData::F32(x) => Numbers::F32(channels_last(dims, x)),
            HostData::F16(x) => Numbers::F16(channels_last(dims, x)),
        };
        Packed { dims, numbers }
    }

    /// The numbers as f32 in checkpoint order (N, C, kh, kw).
    pub(crate) fn unpack(&self) -> Vec<f32> {
        let FilterDims { n, c, kh, kw } = self.dims;
        let wide = self.wide();
        let mut out = Vec::with_capacity(wide.len());
        for (n, c, t) in (0..n).flat_map(|n| (0..c).flat_map(move |c| (0..kh * kw).map(move |t| (n, c, t)))) {
            out.push(wide[(n * kh * kw + t) * self.dims.c + c]);
        }
        out
    }

    /// All numbers as f32, (N, kh, kw, C).
    pub(crate) fn wide(&self) -> Vec<f32> {
        match &self.numbers {
            Numbers::F32(x) => x.clone(),
            Numbers::F16(x) => x.iter().map(|v| v.to_f32()).collect(),
        }
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
        self.dims.n * self.dims.c * self.dims.kh * self.dims.kw * self.dtype().size()
    }
}

fn channels_last<T: Copy>(dims: FilterDims, x: &[T]) -> Vec<T> {
    let taps = dims.kh * dims.kw;
    let mut out = Vec::with_capacity(x.len());
    for filter in x.chunks(dims.c * taps) {
        for t in 0..taps {
            out.extend((0..dims.c).map(|c| filter[c * taps + t]));
        }
    }
    out
}

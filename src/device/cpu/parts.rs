//! How outputs are parted among tasks, beyond one contiguous run each.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{Cpu, math};

/// Elements per task of an elementwise kernel: 64 KiB of each operand.
pub(crate) const BLOCK: usize = 1 << 14;

impl Cpu {
    /// `sum += term`.
    pub(crate) fn accumulate(&self, sum: &mut [f32], term: &[f32]) {
        self.chunks_mut(sum, BLOCK, |i, sum| math::accumulate(sum, &term[i * BLOCK..][..sum.len()]));
    }

    /// [`Cpu::chunks_mut`] over two outputs at once: task `i` gets chunk `i` of both.
    pub(crate) fn zip_chunks_mut<A: Send, B: Send>(
        &self,
        (a, a_len): (&mut [A], usize),
        (b, b_len): (&mut [B], usize),
        task: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
    ) {
        let (a_len, b_len) = (a_len.max(1), b_len.max(1));
        if a.len() <= a_len || self.threads() == 1 {
            a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate().for_each(|(i, (a, b))| task(i, a, b));
        } else {
            let pairs = |a: &mut [A], b: &mut [B]| {
                a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len)).enumerate().for_each(|(i, (a, b))| task(i, a, b));
            };
            self.install(|| pairs(a, b));
        }
    }
}

/// An output whose tasks write interleaved runs, such as one head of every row.
pub(crate) struct Scatter<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow of plain numbers, and `run` makes its callers answer
// for disjoint access.
unsafe impl Sync for Scatter<'_> {}
// SAFETY: as above.
unsafe impl Send for Scatter<'_> {}

impl<'a> Scatter<'a> {
    pub(crate) fn new(out: &'a mut [f32]) -> Self {
        Scatter { start: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// No two runs that are alive at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn run(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "a run should lie within its output");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

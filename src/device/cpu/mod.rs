//! The CPU device: a thread pool of its own, recycled buffers and the numeric kernels.
//!
//! Results do not depend on the number of threads: work is split over *outputs* only, and every
//! reduction is done by one task in a fixed order.

pub(crate) mod filter;
pub(crate) mod gemm;
pub(crate) mod lanes;
pub(crate) mod math;
mod memory;
mod micro;
mod pack;
pub(crate) mod parts;
pub(crate) mod tile;
mod winograd;

pub use memory::Buffer;
pub(crate) use pack::Packed;

use std::sync::Arc;

use rayon::prelude::*;

use crate::{Error, Result};

/// Dimensions of a weight seen as a convolution: a linear layer is one of 1x1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilterDims {
    pub n: usize,
    pub c: usize,
    pub kh: usize,
    pub kw: usize,
}

/// Handle to the CPU device.
#[derive(Clone)]
pub struct Cpu {
    inner: Arc<Inner>,
}

struct Inner {
    pool: rayon::ThreadPool,
    memory: memory::Recycler,
}

impl Cpu {
    /// A device with its own pool of `threads` workers (all cores when `None`). Idle workers sleep.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let failed = |detail: String| Error::Device { device: "cpu".into(), detail };
        let threads = match threads {
            Some(0) => return Err(failed("needs at least one thread".into())),
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("customttt-{i}"))
            .build()
            .map_err(|e| failed(e.to_string()))?;
        Ok(Cpu { inner: Arc::new(Inner { pool, memory: memory::Recycler::default() }) })
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.inner.pool.current_num_threads()
    }

    pub(crate) fn same(&self, other: &Cpu) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Runs `work` on the pool; nested calls run in place.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inner.pool.install(work)
    }

    /// A buffer of `len` numbers with unspecified contents, reused from a dropped one where possible.
    pub fn alloc(&self, len: usize) -> Buffer {
        self.inner.memory.take(len)
    }

    /// Calls `task(i)` for every `i < n`, on the pool if there is more than one.
    pub fn for_each(&self, n: usize, task: impl Fn(usize) + Sync + Send) {
        if n <= 1 || self.threads() == 1 {
            (0..n).for_each(task);
        } else {
            self.install(|| (0..n).into_par_iter().for_each(task));
        }
    }

    /// Calls `task(i, chunk)` for every chunk of `len` elements of `out`. Pick `len` from the shape
    /// alone, so that results cannot depend on the number of threads.
    pub fn chunks_mut<T: Send>(&self, out: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
        if out.len() <= len || self.threads() == 1 {
            out.chunks_mut(len.max(1)).enumerate().for_each(|(i, c)| task(i, c));
        } else {
            self.install(|| out.par_chunks_mut(len).enumerate().for_each(|(i, c)| task(i, c)));
        }
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Cpu({} threads)", self.threads())
    }
}

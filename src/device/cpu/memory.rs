//! Buffers that return to a free list when dropped, so that a step touches no fresh pages after the first.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// Dropped buffers by capacity.
#[derive(Clone, Default)]
pub(super) struct Recycler {
    free: Arc<Mutex<BTreeMap<usize, Vec<Vec<f32>>>>>,
}

impl Recycler {
    /// Smallest buffer worth keeping; below it the allocator is as fast.
    const MIN: usize = 1 << 12;

    pub(super) fn take(&self, len: usize) -> Buffer {
        let data = self.reuse(len).unwrap_or_else(|| vec![0.0; len]);
        Buffer { data, home: self.clone() }
    }

    /// The tightest kept buffer that wastes at most a quarter.
    fn reuse(&self, len: usize) -> Option<Vec<f32>> {
        if len < Self::MIN {
            return None;
        }
        let mut free = self.free.lock().expect("no holder of the free list should panic");
        let (&capacity, list) = free.range_mut(len..=len + len / 4).next()?;
        let mut data = list.pop();
        if list.is_empty() {
            free.remove(&capacity);
        }
        if let Some(data) = &mut data {
            data.resize(len, 0.0);
        }
        data
    }

    fn give(&self, mut data: Vec<f32>) {
        if data.capacity() < Self::MIN {
            return;
        }
        // A kept buffer is always full length, so that reuse only ever shortens it.
        data.resize(data.capacity(), 0.0);
        self.free.lock().expect("no holder of the free list should panic").entry(data.len()).or_default().push(data);
    }
}

/// Host memory of a tensor: `f32` numbers.
pub struct Buffer {
    data: Vec<f32>,
    home: Recycler,
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.data));
    }
}

//! Random weights, a function of (seed, component, name) alone, written as they are made.

use std::io::{self, Write};
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::super::safetensors::{Stored, write_streamed};
use crate::{DType, Philox, Result, Shape};

/// Numbers made at a time.
const BLOCK: usize = 4 << 20;
/// Numbers a thread makes at a time; a multiple of four.
const SLICE: usize = 1 << 16;

/// Writes random numbers for `names` to a file. `component` keeps equal names of different files apart; `tables` are
/// tensors of given numbers.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub(super) fn write_random(
    path: &Path,
    component: &str,
    names: &[(String, Shape)],
    tables: &[(String, Shape, Vec<f32>)],
    seed: u64,
    dtype: DType,
) -> Result<()> {
    let stored = match dtype {
        DType::F16 => Stored::F16,
        DType::F32 => Stored::F32,
    };
    let mut all: Vec<_> = names.iter().map(|(name, shape)| (name, *shape, None)).collect();
    all.extend(tables.iter().map(|(name, shape, numbers)| (name, *shape, Some(numbers))));
    all.sort_by_key(|(name, ..)| *name);
    let header: Vec<_> = all.iter().map(|(name, shape, _)| (name.as_str(), stored, &shape[..])).collect();
    write_streamed(path, &header, &[("format", "pt")], |out| {
        let mut numbers = vec![0.0; BLOCK];
        for (name, shape, table) in &all {
            if let Some(table) = table {
                write_numbers(out, table, dtype)?;
                continue;
            }
            let source = Source::new(seed, component, name, *shape);
            let count = shape.count();
            for start in (0..count).step_by(BLOCK) {
                let block = &mut numbers[..BLOCK.min(count - start)];
                block.par_chunks_mut(SLICE).enumerate().for_each(|(i, slice)| source.fill(start + i * SLICE, slice));
                write_numbers(out, block, dtype)?;
            }
        }
        Ok(())
    })
}

fn write_numbers(out: &mut dyn Write, numbers: &[f32], dtype: DType) -> io::Result<()> {
    match dtype {
        DType::F32 => out.write_all(bytemuck::cast_slice(numbers)),
        DType::F16 => {
            let mut narrow = vec![f16::ZERO; numbers.len()];
            let pairs = narrow.par_chunks_mut(SLICE).zip(numbers.par_chunks(SLICE));
            pairs.for_each(|(narrow, numbers)| narrow.convert_from_f32_slice(numbers));
            out.write_all(bytemuck::cast_slice(&narrow))
        }
    }
}

/// `mean + spread * normal` for one parameter.
struct Source {
    philox: Philox,
    step: u32,
    mean: f32,
    spread: f32,
}

impl Source {
    fn new(seed: u64, component: &str, name: &str, shape: Shape) -> Self {
        let id = fnv1a(&[component.as_bytes(), b"/", name.as_bytes()]);
        let (mean, spread) = law(name, shape);
        Source { philox: Philox::new(seed, (id >> 32) as u32), step: id as u32, mean, spread }
    }

    fn fill(&self, first: usize, out: &mut [f32]) {
        self.philox.normals(self.step, first as u64, out);
        out.iter_mut().for_each(|x| *x = self.mean + self.spread * *x);
    }
}

/// Mean and spread of a parameter, by its kind. Matrices keep the variance of what they multiply; norms and biases
/// are off their neutral values far enough to show when one is forgotten. Nothing is zero, so that every path of a
/// network, motion modules included, has an effect.
fn law(name: &str, shape: Shape) -> (f32, f32) {
    const LOGIT_SCALE: f32 = 2.6592;
    if shape.is_empty() {
        (LOGIT_SCALE, 0.0)
    } else if name.ends_with("token_embedding.weight") {
        (0.0, 1.0)
    } else if name.ends_with("position_embedding.weight") || name.ends_with("class_embedding") {
        (0.0, 0.5)
    } else if shape.len() >= 2 {
        (0.0, 1.0 / (shape[1..].iter().product::<usize>() as f32).sqrt())
    } else if name.ends_with("weight") {
        (1.0, 0.1)
    } else {
        (0.0, 0.05)
    }
}

/// A 64-bit hash that is the same everywhere and forever (Fowler, Noll, Vo).
fn fnv1a(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

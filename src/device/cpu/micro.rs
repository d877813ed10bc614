//! The innermost loops, by hand for x86-64 with AVX2, FMA and F16C, in plain loops elsewhere. All `unsafe`
//! code of the kernels is here.
//!
//! A *block* is `len` rows of [`LANES`] weights as f32: what one panel of outputs multiplies `len`
//! consecutive input features with.

use std::marker::PhantomData;

use half::f16;

/// Outputs of one panel.
pub(super) const LANES: usize = 16;
/// Most rows that one call of [`Micro::accumulate`] works on.
pub(super) const ROWS: usize = 6;

/// Most products that are added up before the sum goes to the output. Rounding errors grow with the length of
/// a chain of additions, so a long row is added in parts.
const CHAIN: usize = 160;

/// The length, at most [`CHAIN`], of equal parts of a row.
#[inline]
fn chain(len: usize) -> usize {
    len.div_ceil(len.div_ceil(CHAIN).max(1)).max(1)
}

/// An output that several tasks write, each its own rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` stands for an exclusive borrow of plain numbers; that tasks keep to their own part is
// the contract of its `unsafe` methods.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(out: &'a mut [f32]) -> Self {
        Output { data: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// No one else may use these elements while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len, "a task should stay within its output");
        // SAFETY: within the borrowed slice; exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// The instruction set in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Micro {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Micro {
    /// The best one that this processor has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Micro::Avx2;
        }
        Micro::Portable
    }

    /// `out[to .. to + LANES] += x[from .. from + len] block` for every pair `(to, from)`, at most [`ROWS`].
    ///
    /// # Safety
    /// No other thread may use those elements of `out`.
    #[inline]
    pub(super) unsafe fn accumulate(self, out: Output, x: &[f32], pairs: &[Pair], block: &[f32]) {
        assert!(block.len().is_multiple_of(LANES), "a block should be whole rows");
        let len = block.len() / LANES;
        for pair in pairs {
            assert!(pair.to + LANES <= out.len, "a tile should lie within the output");
            assert!(pair.from + len <= x.len(), "a row should lie within the input");
        }
        match self {
            Micro::Portable => {
                for pair in pairs {
                    // SAFETY: exclusive by contract.
                    let to = unsafe { out.slice(pair.to, LANES) };
                    portable::row(to, &x[pair.from..][..len], block);
                }
            }
            // SAFETY: the processor has the instructions; all accesses were checked above.
            #[cfg(target_arch = "x86_64")]
            Micro::Avx2 => unsafe {
                match pairs.len() {
                    0 => {}
                    1 => avx2::tile::<1>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    2 => avx2::tile::<2>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    3 => avx2::tile::<3>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    4 => avx2::tile::<4>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    5 => avx2::tile::<5>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    6 => avx2::tile::<6>(out.data, x.as_ptr(), pairs, block.as_ptr(), len),
                    n => panic!("a tile should have at most {ROWS} rows, not {n}"),
                }
            },
        }
    }

    /// `out[i] = x[i]`, widened.
    pub(super) fn widen(self, out: &mut [f32], x: &[f16]) {
        assert_eq!(out.len(), x.len(), "widening should keep the length");
        match self {
            Micro::Portable => out.iter_mut().zip(x).for_each(|(o, x)| *o = x.to_f32()),
            // SAFETY: the processor has the instructions; equal lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Micro::Avx2 => unsafe { avx2::widen(out, x) },
        }
    }

    /// A transposed square: `out[i, j] = x[j, i]`, both [`LANES`] squared, widened.
    pub(super) fn widen_transposed(self, out: &mut [f32], x: &[f16]) {
        let (out, x) = (square_mut(out), square(x));
        match self {
            Micro::Portable => portable::transpose(out, x, |v| v.to_f32()),
            // SAFETY: the processor has the instructions.
            #[cfg(target_arch = "x86_64")]
            Micro::Avx2 => unsafe { avx2::widen_transposed(out, x) },
        }
    }

    /// A transposed square: `out[i, j] = x[j, i]`, both [`LANES`] squared.
    pub(super) fn transpose(self, out: &mut [f32], x: &[f32]) {
        let (out, x) = (square_mut(out), square(x));
        match self {
            Micro::Portable => portable::transpose(out, x, |v| v),
            // SAFETY: the processor has the instructions.
            #[cfg(target_arch = "x86_64")]
            Micro::Avx2 => unsafe { avx2::transpose(out, x) },
        }
    }
}

/// Where a row of the input goes: offsets into output and input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub to: usize,
    pub from: usize,
}

type Square<T> = [T; LANES * LANES];

fn square<T>(x: &[T]) -> &Square<T> {
    x.try_into().expect("a transposed block should be square")
}

fn square_mut<T>(x: &mut [T]) -> &mut Square<T> {
    x.try_into().expect("a transposed block should be square")
}

mod portable {
    use super::{LANES, Square, chain};

    pub(super) fn row(out: &mut [f32], x: &[f32], block: &[f32]) {
        let step = chain(x.len());
        for (x, block) in x.chunks(step).zip(block.chunks(step * LANES)) {
            let mut sum = [0.0; LANES];
            for (&x, w) in x.iter().zip(block.chunks_exact(LANES)) {
                sum.iter_mut().zip(w).for_each(|(s, w)| *s += x * w);
            }
            out.iter_mut().zip(sum).for_each(|(o, s)| *o += s);
        }
    }

    pub(super) fn transpose<T: Copy>(out: &mut Square<f32>, x: &Square<T>, widen: impl Fn(T) -> f32) {
        for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
            out.iter_mut().enumerate().for_each(|(j, o)| *o = widen(x[j * LANES + i]));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{LANES, Pair, Square, chain};

    /// # Safety
    /// Needs AVX2 and FMA; every pair must allow `LANES` elements of `out` and `len` of `x`, `block` must
    /// have `len * LANES` elements, and `pairs` at least `R`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile<const R: usize>(
        out: *mut f32,
        x: *const f32,
        pairs: &[Pair],
        block: *const f32,
        len: usize,
    ) {
        let mut from = [x; R];
        for (from, pair) in from.iter_mut().zip(pairs) {
            // SAFETY: within `x`, by contract.
            *from = unsafe { x.add(pair.from) };
        }
        let step = chain(len);
        let mut start = 0;
        while start < len {
            let end = len.min(start + step);
            let mut sum = [[_mm256_setzero_ps(); 2]; R];
            for k in start..end {
                // SAFETY: k < len, within `block` and every row, by contract.
                unsafe {
                    let low = _mm256_loadu_ps(block.add(k * LANES));
                    let high = _mm256_loadu_ps(block.add(k * LANES + 8));
                    for r in 0..R {
                        let a = _mm256_broadcast_ss(&*from[r].add(k));
                        sum[r][0] = _mm256_fmadd_ps(a, low, sum[r][0]);
                        sum[r][1] = _mm256_fmadd_ps(a, high, sum[r][1]);
                    }
                }
            }
            for (sum, pair) in sum.iter().zip(pairs) {
                // SAFETY: `LANES` elements are within `out`, by contract.
                unsafe {
                    let to = out.add(pair.to);
                    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[0]));
                    _mm256_storeu_ps(to.add(8), _mm256_add_ps(_mm256_loadu_ps(to.add(8)), sum[1]));
                }
            }
            start = end;
        }
    }

    /// # Safety
    /// Needs AVX and F16C; both slices must have the same length.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn widen(out: &mut [f32], x: &[f16]) {
        let mut wide = out.chunks_exact_mut(8);
        let mut narrow = x.chunks_exact(8);
        for (out, x) in (&mut wide).zip(&mut narrow) {
            // SAFETY: both chunks have eight elements.
            unsafe {
                let x = _mm_loadu_si128(x.as_ptr().cast());
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(x));
            }
        }
        wide.into_remainder().iter_mut().zip(narrow.remainder()).for_each(|(o, x)| *o = x.to_f32());
    }

    /// # Safety
    /// Needs AVX2 and F16C.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn widen_transposed(out: &mut Square<f32>, x: &Square<f16>) {
        for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            let mut rows = [_mm_setzero_si128(); 8];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: eight elements of row j + r < LANES from column i <= 8 on.
                *row = unsafe { _mm_loadu_si128(x.as_ptr().add((j + r) * LANES + i).cast()) };
            }
            for (r, row) in transpose_8x8(rows).into_iter().enumerate() {
                // SAFETY: as above, with rows and columns exchanged.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((i + r) * LANES + j), _mm256_cvtph_ps(row)) };
            }
        }
    }

    /// Transposes eight rows of eight 16-bit numbers.
    #[target_feature(enable = "avx2")]
    fn transpose_8x8(x: [__m128i; 8]) -> [__m128i; 8] {
        interleave(interleave(interleave(x)))
    }

    /// Interleaves row i with row i + 4: an element's index, written in bits (row, column), turns left by one.
    #[target_feature(enable = "avx2")]
    fn interleave([a, b, c, d, e, f, g, h]: [__m128i; 8]) -> [__m128i; 8] {
        let low = |x, y| _mm_unpacklo_epi16(x, y);
        let high = |x, y| _mm_unpackhi_epi16(x, y);
        [low(a, e), high(a, e), low(b, f), high(b, f), low(c, g), high(c, g), low(d, h), high(d, h)]
    }

    /// # Safety
    /// Needs AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose(out: &mut Square<f32>, x: &Square<f32>) {
        for (i, j) in (0..LANES).step_by(4).flat_map(|i| (0..LANES).step_by(4).map(move |j| (i, j))) {
            // SAFETY: four elements of rows j .. j + 4 from column i on, i and j at most LANES - 4; and the
            // same with rows and columns exchanged.
            unsafe {
                let row = |r: usize| _mm_loadu_ps(x.as_ptr().add((j + r) * LANES + i));
                let (mut a, mut b, mut c, mut d) = (row(0), row(1), row(2), row(3));
                _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                for (r, row) in [a, b, c, d].into_iter().enumerate() {
                    _mm_storeu_ps(out.as_mut_ptr().add((i + r) * LANES + j), row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Philox;

    fn all() -> Vec<Micro> {
        let mut all = vec![Micro::Portable, Micro::detect()];
        all.dedup();
        all
    }

    #[test]
    fn transposes_and_widens() {
        let wide = Philox::new(1, 1).normal_vec(0, LANES * LANES);
        let narrow: Vec<f16> = wide.iter().map(|&v| f16::from_f32(v)).collect();
        for micro in all() {
            let mut out = vec![0.0; LANES * LANES];
            micro.transpose(&mut out, &wide);
            assert!((0..256).all(|i| out[i] == wide[i % LANES * LANES + i / LANES]), "{micro:?}");
            micro.widen_transposed(&mut out, &narrow);
            assert!((0..256).all(|i| out[i] == narrow[i % LANES * LANES + i / LANES].to_f32()), "{micro:?}");
            let mut out = vec![0.0; 37];
            micro.widen(&mut out, &narrow[..37]);
            assert!(out.iter().zip(&narrow).all(|(o, x)| *o == x.to_f32()), "{micro:?}");
        }
    }

    #[test]
    fn accumulates_every_number_of_rows() {
        let (len, columns) = (2 * CHAIN + 3, 40);
        let x = Philox::new(1, 2).normal_vec(0, 600);
        let block = Philox::new(1, 3).normal_vec(0, len * LANES);
        for (micro, rows) in all().into_iter().flat_map(|m| (0..=ROWS).map(move |r| (m, r))) {
            let mut out = vec![1.0; ROWS * columns];
            let pairs: Vec<_> = (0..rows).map(|r| Pair { to: r * columns + 3, from: r * 31 + 5 }).collect();
            // SAFETY: one thread.
            unsafe { micro.accumulate(Output::new(&mut out), &x, &pairs, &block) };
            for (i, &got) in out.iter().enumerate() {
                let (row, lane) = (i / columns, (i % columns).wrapping_sub(3));
                let inside = row < rows && lane < LANES;
                let term = |k: usize| f64::from(x[row * 31 + 5 + k]) * f64::from(block[k * LANES + lane]);
                let want = 1.0 + if inside { (0..len).map(term).sum::<f64>() } else { 0.0 };
                assert!((f64::from(got) - want).abs() < 1e-4, "{micro:?}, {rows} rows, element {i}");
            }
        }
    }
}

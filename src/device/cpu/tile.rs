//! Products of the small matrices of attention, as tiles of sums that stay in registers.
//!
//! Scores are kept transposed in *panels*: (keys, [`QUERIES`]), so that softmax runs down the columns with one
//! query per lane.

use super::lanes::Lanes;

/// Queries of a panel.
pub(crate) const QUERIES: usize = 16;

/// `columns` rounded up to whole vectors: the row length of packed operands.
pub(crate) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(8)
}

/// The left factor of a product: element (row, k) is `data[row * row_step + k * k_step]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub data: &'a [f32],
    pub row_step: usize,
    pub k_step: usize,
}

impl<'a> Left<'a> {
    fn at_row(self, row: usize) -> Self {
        Left { data: &self.data[row * self.row_step..], ..self }
    }
}

/// The right factor and the output: rows of `step` numbers, a multiple of eight.
///
/// `out[r][c] = sum over k of a[r][k] b[k][c]`, added to `out` if ADD, for all rows of `out` and all columns.
#[inline(always)]
pub(crate) fn product<L: Lanes, const ADD: bool>(out: &mut [f32], a: Left, b: &[f32], step: usize) {
    for (i, out) in out.chunks_mut(4 * step).enumerate() {
        let a = a.at_row(4 * i);
        match out.len() / step {
            4 => rows::<L, 4, ADD>(out, a, b, step),
            3 => rows::<L, 3, ADD>(out, a, b, step),
            2 => rows::<L, 2, ADD>(out, a, b, step),
            _ => rows::<L, 1, ADD>(out, a, b, step),
        }
    }
}

/// R rows, three vectors at a time, or two where that leaves no single one.
#[inline(always)]
fn rows<L: Lanes, const R: usize, const ADD: bool>(out: &mut [f32], a: Left, b: &[f32], step: usize) {
    let mut at = 0;
    while at < step {
        let (out, b) = (&mut out[at..], &b[at..]);
        at += match (step - at) / 8 {
            1 => tile::<L, R, 1, ADD>(out, a, b, step),
            2 | 4 => tile::<L, R, 2, ADD>(out, a, b, step),
            _ => tile::<L, R, 3, ADD>(out, a, b, step),
        };
    }
}

/// [`product`] for scores: `step` = [`QUERIES`], `b` (D, QUERIES), six rows at a time.
#[inline(always)]
pub(crate) fn scores<L: Lanes>(out: &mut [f32], keys: Left, queries: &[f32]) {
    const ROWS: usize = 6;
    for (i, out) in out.chunks_mut(ROWS * QUERIES).enumerate() {
        let keys = keys.at_row(ROWS * i);
        match out.len() / QUERIES {
            6 => tile::<L, 6, 2, false>(out, keys, queries, QUERIES),
            5 => tile::<L, 5, 2, false>(out, keys, queries, QUERIES),
            4 => tile::<L, 4, 2, false>(out, keys, queries, QUERIES),
            3 => tile::<L, 3, 2, false>(out, keys, queries, QUERIES),
            2 => tile::<L, 2, 2, false>(out, keys, queries, QUERIES),
            _ => tile::<L, 1, 2, false>(out, keys, queries, QUERIES),
        };
    }
}

/// The first R rows and V vectors of columns; returns the number of columns.
#[inline(always)]
fn tile<L: Lanes, const R: usize, const V: usize, const ADD: bool>(
    out: &mut [f32],
    a: Left,
    b: &[f32],
    step: usize,
) -> usize {
    let len = b.len().div_ceil(step);
    assert!(len > 0 && (len - 1) * step + 8 * V <= b.len(), "the right factor should be whole");
    assert!((R - 1) * a.row_step + (len - 1) * a.k_step < a.data.len(), "the left factor should be whole");
    assert!((R - 1) * step + 8 * V <= out.len(), "the tile should lie within the output");
    let mut sum = [[L::splat(0.0); V]; R];
    // SAFETY: r < R, k < len and v < V; the assertions above bound every address.
    unsafe {
        let mut left = [a.data.as_ptr(); R];
        for r in 0..R {
            left[r] = left[r].add(r * a.row_step);
        }
        let to = out.as_mut_ptr();
        if ADD {
            for r in 0..R {
                for v in 0..V {
                    sum[r][v] = L::load(&*to.add(r * step + 8 * v).cast());
                }
            }
        }
        for k in 0..len {
            let right = b.as_ptr().add(k * step);
            for r in 0..R {
                let a = L::splat(*left[r].add(k * a.k_step));
                for v in 0..V {
                    sum[r][v] = a.mul_add(L::load(&*right.add(8 * v).cast()), sum[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                sum[r][v].store(&mut *to.add(r * step + 8 * v).cast());
            }
        }
    }
    8 * V
}

/// The vectors of a panel, two to a row.
#[inline(always)]
fn halves(panel: &[f32]) -> &[[[f32; 8]; 2]] {
    panel.as_chunks().0.as_chunks().0
}

#[inline(always)]
fn halves_mut(panel: &mut [f32]) -> &mut [[[f32; 8]; 2]] {
    panel.as_chunks_mut().0.as_chunks_mut().0
}

// No closures around vectors: one that is not inlined is compiled without the instructions.

/// Softmax down every column, but for the division by the sums, which are returned inverted.
#[inline(always)]
pub(crate) fn softmax<L: Lanes>(scores: &mut [f32]) -> [L; 2] {
    let mut max = [L::splat(f32::NEG_INFINITY); 2];
    for row in halves(scores) {
        for h in 0..2 {
            max[h] = max[h].max(L::load(&row[h]));
        }
    }
    let mut sum = [L::splat(0.0); 2];
    for row in halves_mut(scores) {
        for h in 0..2 {
            let e = L::load(&row[h]).sub(max[h]).exp_negative();
            e.store(&mut row[h]);
            sum[h] = sum[h].add(e);
        }
    }
    [L::splat(1.0).div(sum[0]), L::splat(1.0).div(sum[1])]
}

/// Multiplies every row.
#[inline(always)]
pub(crate) fn scale<L: Lanes>(panel: &mut [f32], by: [L; 2]) {
    for row in halves_mut(panel) {
        for h in 0..2 {
            by[h].mul(L::load(&row[h])).store(&mut row[h]);
        }
    }
}

/// `dS = P (dP - sum over keys of P dP)` over dP.
#[inline(always)]
pub(crate) fn softmax_backward<L: Lanes>(dp: &mut [f32], p: &[f32]) {
    let mut mean = [L::splat(0.0); 2];
    for (dp, p) in halves(dp).iter().zip(halves(p)) {
        for h in 0..2 {
            mean[h] = L::load(&dp[h]).mul_add(L::load(&p[h]), mean[h]);
        }
    }
    for (dp, p) in halves_mut(dp).iter_mut().zip(halves(p)) {
        for h in 0..2 {
            L::load(&dp[h]).sub(mean[h]).mul(L::load(&p[h])).store(&mut dp[h]);
        }
    }
}

/// `out[query] += sum over keys of p[key][query] rows[key]`, for QUERIES rows of `step` numbers.
#[inline(always)]
pub(crate) fn add_weighted<L: Lanes>(out: &mut [f32], p: &[f32], rows: &[f32], step: usize) {
    // A run of keys whose weights stay in the first cache.
    const RUN: usize = 256;
    for (p, rows) in p.chunks(RUN * QUERIES).zip(rows.chunks(RUN * step)) {
        product::<L, true>(out, Left { data: p, row_step: 1, k_step: QUERIES }, rows, step);
    }
}

/// `out[key] += sum over queries of p[key][query] rows[query]`.
#[inline(always)]
pub(crate) fn add_transposed<L: Lanes>(out: &mut [f32], p: &[f32], rows: &[f32], step: usize) {
    product::<L, true>(out, Left { data: p, row_step: QUERIES, k_step: 1 }, rows, step);
}

/// Packs `rows` rows, `x(row)`, times `scale` into rows of [`padded`] length; zeros after them.
pub(crate) fn pack_rows<'a>(out: &mut [f32], d: usize, rows: usize, scale: f32, x: impl Fn(usize) -> &'a [f32]) {
    let step = padded(d);
    let (full, rest) = out.split_at_mut(rows * step);
    for (row, out) in full.chunks_exact_mut(step).enumerate() {
        out[d..].fill(0.0);
        out.iter_mut().zip(x(row)).for_each(|(to, x)| *to = scale * x);
    }
    rest.fill(0.0);
}

/// Packs up to sixteen rows, `x(row)`, times `scale` side by side: (D, QUERIES), zeros after them.
pub(crate) fn pack_panel<'a>(out: &mut [f32], rows: usize, scale: f32, x: impl Fn(usize) -> &'a [f32]) {
    if rows < QUERIES {
        out.fill(0.0);
    }
    for row in 0..rows {
        out.chunks_exact_mut(QUERIES).zip(x(row)).for_each(|(to, x)| to[row] = scale * x);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::Philox;
    use crate::device::cpu::lanes::{Avx2, Portable};

    /// Scores, softmax, its gradient and both products, for odd numbers of keys and channels.
    fn everything<L: Lanes>(keys: usize, d: usize) -> Vec<f32> {
        let draw = |stream, len| Philox::new(5, stream).normal_vec(0, len);
        let (k, q) = (draw(1, keys * padded(d)), draw(2, d * QUERIES));
        let mut p = vec![0.0; keys * QUERIES];
        scores::<L>(&mut p, Left { data: &k, row_step: padded(d), k_step: 1 }, &q);
        let mut all = p.clone();
        let inverse = softmax::<L>(&mut p);
        scale::<L>(&mut p, inverse);
        let mut ds = draw(3, keys * QUERIES);
        softmax_backward::<L>(&mut ds, &p);
        let (mut dq, mut dk) = (draw(4, QUERIES * padded(d)), draw(5, keys * padded(d)));
        add_weighted::<L>(&mut dq, &ds, &k, padded(d));
        add_transposed::<L>(&mut dk, &ds, &dq, padded(d));
        [p, ds, dq, dk].iter().for_each(|x| all.extend(x));
        all
    }

    #[test]
    fn vectors_and_plain_loops_give_the_same_bits() {
        if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
            println!("left out: this processor has no AVX2");
            return;
        }
        for (keys, d) in [(1, 1), (7, 3), (13, 40), (300, 17), (26, 64)] {
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(
                bits(everything::<Portable>(keys, d)),
                bits(everything::<Avx2>(keys, d)),
                "{keys} keys, D = {d}"
            );
        }
    }

    #[test]
    fn products_match_f64() {
        let (keys, d) = (13, 20);
        let (k, q) = (Philox::new(6, 1).normal_vec(0, keys * padded(d)), Philox::new(6, 2).normal_vec(0, d * QUERIES));
        let mut out = vec![0.0; keys * QUERIES];
        scores::<Portable>(&mut out, Left { data: &k, row_step: padded(d), k_step: 1 }, &q);
        for (at, got) in out.iter().enumerate() {
            let (key, query) = (at / QUERIES, at % QUERIES);
            let term = |i: usize| f64::from(k[key * padded(d) + i]) * f64::from(q[i * QUERIES + query]);
            assert!((f64::from(*got) - (0..d).map(term).sum::<f64>()).abs() < 1e-5, "score {key}, {query}");
        }
    }
}

//! Channels lie side by side, so all sums run over rows, sixteen channels at a time, and become sums over
//! groups only at the end of a block of rows. Blocks depend on the shape alone.

use multiversion::multiversion;

use super::{Dims, GroupNorm};
use crate::device::Cpu;
use crate::ops::activation::{silu, silu_slope};

/// Rows of a block: about 32 KiB, and few enough for f32 sums.
fn block_rows(channels: usize) -> usize {
    (8192 / channels).clamp(8, 64)
}

/// Mean (in two parts) and rstd.
type Statistics = [f32; 3];

pub(super) fn forward(
    cpu: &Cpu,
    y: &mut [f32],
    statistics: &mut [f32],
    x: &[f32],
    (gamma, beta): (&[f32], &[f32]),
    dims: Dims,
    norm: GroupNorm,
) {
    let Dims { rows, channels, .. } = dims;
    let set = rows * channels;
    let block = block_rows(channels) * channels;
    cpu.zip_chunks_mut((y, set), (statistics, norm.groups * 3), |s, y, statistics| {
        let x = &x[s * set..][..set];
        let mut moments = vec![[0.0; 2]; rows.div_ceil(block_rows(channels)) * norm.groups];
        cpu.chunks_mut(&mut moments, norm.groups, |i, m| block_moments(m, block_of(x, i, block), channels));
        let (statistics, _) = statistics.as_chunks_mut();
        combine(statistics, &moments, dims, norm);
        let map = Affine::new(statistics, gamma, beta);
        cpu.chunks_mut(y, block, |i, y| map.normalise(y, block_of(x, i, block), norm.silu));
    });
}

/// `dx` onto `sum`, or over `dy`, which is overwritten in any case.
#[expect(clippy::too_many_arguments, reason = "one call, from the operation's backward")]
pub(super) fn backward(
    cpu: &Cpu,
    sum: Option<&mut [f32]>,
    dy: &mut [f32],
    x: &[f32],
    statistics: &[f32],
    (gamma, beta): (&[f32], &[f32]),
    dims: Dims,
    norm: GroupNorm,
) {
    let Dims { rows, channels, .. } = dims;
    let set = rows * channels;
    let block = block_rows(channels) * channels;
    let one_set = |s: usize, sum: &mut [f32], dy: &mut [f32]| {
        let x = &x[s * set..][..set];
        let (statistics, _) = statistics[s * norm.groups * 3..][..norm.groups * 3].as_chunks();
        let map = Affine::new(statistics, gamma, beta);
        let mut sums = vec![[0.0; 2]; rows.div_ceil(block_rows(channels)) * norm.groups];
        cpu.zip_chunks_mut((dy, block), (&mut sums, norm.groups), |i, dy, sums| {
            let x = block_of(x, i, block);
            if norm.silu {
                map.through_silu(dy, x);
            }
            block_sums(sums, dy, x, &map.mean, gamma);
        });
        let slope = Slope::new(statistics, &sums, gamma, dims);
        if sum.is_empty() {
            cpu.chunks_mut(dy, block, |i, dy| slope.replace(dy, block_of(x, i, block), &map.mean));
        } else {
            let dy = &*dy;
            cpu.chunks_mut(sum, block, |i, sum| {
                slope.add(sum, block_of(dy, i, block), block_of(x, i, block), &map.mean)
            });
        }
    };
    match sum {
        Some(sum) => cpu.zip_chunks_mut((sum, set), (dy, set), one_set),
        None => cpu.chunks_mut(dy, set, |s, dy| one_set(s, &mut [], dy)),
    }
}

fn block_of(x: &[f32], i: usize, block: usize) -> &[f32] {
    &x[i * block..x.len().min((i + 1) * block)]
}

/// For every channel, the sums over rows of `terms(x, y, pivot)`.
#[inline(always)]
fn sum_rows<const N: usize>(
    sums: &mut [Vec<f32>; N],
    x: &[f32],
    y: &[f32],
    pivot: &[f32],
    terms: impl Fn(f32, f32, f32) -> [f32; N] + Copy,
) {
    const WIDE: usize = 16;
    let whole = pivot.len() / WIDE * WIDE;
    for at in (0..whole).step_by(WIDE) {
        sum_columns::<N, WIDE>(sums, x, y, pivot, at, terms);
    }
    for at in whole..pivot.len() {
        sum_columns::<N, 1>(sums, x, y, pivot, at, terms);
    }
}

#[inline(always)]
fn sum_columns<const N: usize, const W: usize>(
    sums: &mut [Vec<f32>; N],
    x: &[f32],
    y: &[f32],
    pivot: &[f32],
    at: usize,
    terms: impl Fn(f32, f32, f32) -> [f32; N],
) {
    let c = pivot.len();
    let lanes = |x: &[f32], at: usize| -> [f32; W] { x[at..at + W].try_into().expect("W numbers should be W") };
    let pivot = lanes(pivot, at);
    let mut acc = [[0.0; W]; N];
    let mut from = at;
    while from < x.len() {
        let (x, y) = (lanes(x, from), lanes(y, from));
        for l in 0..W {
            let terms = terms(x[l], y[l], pivot[l]);
            for n in 0..N {
                acc[n][l] += terms[n];
            }
        }
        from += c;
    }
    for n in 0..N {
        sums[n][at..at + W].copy_from_slice(&acc[n]);
    }
}

/// Mean and sum of squared deviations of every group within a block, by two sweeps: the second one around
/// the first one's rounded mean, so that nothing cancels.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn block_moments(moments: &mut [[f64; 2]], x: &[f32], channels: usize) {
    let each = channels / moments.len();
    let n = (x.len() / moments.len()) as f64;
    let mut pivot = vec![0.0; channels];
    let mut sums = [vec![0.0; channels]];
    sum_rows(&mut sums, x, x, &pivot, |x, _, _| [x]);
    for (pivot, sums) in pivot.chunks_exact_mut(each).zip(sums[0].chunks_exact(each)) {
        pivot.fill((total(sums) / n) as f32);
    }
    let mut sums = [vec![0.0; channels], vec![0.0; channels]];
    sum_rows(&mut sums, x, x, &pivot, |x, _, pivot| [x - pivot, (x - pivot) * (x - pivot)]);
    for (g, moments) in moments.iter_mut().enumerate() {
        let at = g * each..(g + 1) * each;
        let (first, second) = (total(&sums[0][at.clone()]), total(&sums[1][at]));
        *moments = [f64::from(pivot[g * each]) + first / n, second - first * first / n];
    }
}

fn total(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x)).sum()
}

/// Statistics of a set from the moments of its blocks (Chan, Golub, LeVeque).
fn combine(statistics: &mut [Statistics], moments: &[[f64; 2]], dims: Dims, norm: GroupNorm) {
    let each = dims.channels / norm.groups;
    let n = (dims.rows * each) as f64;
    let blocks = || moments.chunks_exact(norm.groups).enumerate();
    let count = |i: usize| {
        let rows = block_rows(dims.channels);
        (rows.min(dims.rows - i * rows) * each) as f64
    };
    for (g, statistics) in statistics.iter_mut().enumerate() {
        let mean = blocks().map(|(i, m)| count(i) * m[g][0]).sum::<f64>() / n;
        let squares: f64 = blocks().map(|(i, m)| m[g][1] + count(i) * (m[g][0] - mean).powi(2)).sum();
        let high = mean as f32;
        let rstd = 1.0 / (squares / n + norm.eps).sqrt();
        *statistics = [high, (mean - f64::from(high)) as f32, rstd as f32];
    }
}

/// `u = (x - mean) a + b`, channel by channel.
struct Affine {
    /// The leading part of the group's mean; the rest is in `b`
    mean: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Affine {
    fn new(statistics: &[Statistics], gamma: &[f32], beta: &[f32]) -> Self {
        let c = gamma.len();
        let each = c / statistics.len();
        let of = |i: usize| statistics[i / each];
        let slope = |i: usize| f64::from(of(i)[2]) * f64::from(gamma[i]);
        Affine {
            mean: (0..c).map(|i| of(i)[0]).collect(),
            a: (0..c).map(|i| slope(i) as f32).collect(),
            b: (0..c).map(|i| (f64::from(beta[i]) - f64::from(of(i)[1]) * slope(i)) as f32).collect(),
        }
    }

    fn normalise(&self, y: &mut [f32], x: &[f32], with_silu: bool) {
        if with_silu {
            normalise_silu(y, x, &self.mean, &self.a, &self.b);
        } else {
            normalise(y, x, &self.mean, &self.a, &self.b);
        }
    }

    /// `du = dy silu'(u)` in place.
    fn through_silu(&self, dy: &mut [f32], x: &[f32]) {
        through_silu(dy, x, &self.mean, &self.a, &self.b);
    }
}

/// Calls `set(y, u)` for every number.
#[inline(always)]
fn each_u(y: &mut [f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32], set: impl Fn(&mut f32, f32)) {
    let c = mean.len();
    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
        for ((((y, x), mean), a), b) in y.iter_mut().zip(x).zip(mean).zip(a).zip(b) {
            set(y, (x - mean).mul_add(*a, *b));
        }
    }
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn normalise(y: &mut [f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32]) {
    each_u(y, x, mean, a, b, |y, u| *y = u);
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn normalise_silu(y: &mut [f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32]) {
    each_u(y, x, mean, a, b, |y, u| *y = silu(u));
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn through_silu(dy: &mut [f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32]) {
    each_u(dy, x, mean, a, b, |dy, u| *dy *= silu_slope(u));
}

/// Sums of `gamma du` and `gamma du (x - mean)` of every group within a block.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn block_sums(out: &mut [[f64; 2]], du: &[f32], x: &[f32], mean: &[f32], gamma: &[f32]) {
    let mut sums = [vec![0.0; mean.len()], vec![0.0; mean.len()]];
    sum_rows(&mut sums, du, x, mean, |du, x, mean| [du, du * (x - mean)]);
    let each = mean.len() / out.len();
    for (g, out) in out.iter_mut().enumerate() {
        let weighted = |sums: &[f32]| -> f64 {
            let at = g * each..(g + 1) * each;
            sums[at.clone()].iter().zip(&gamma[at]).map(|(&s, &w)| f64::from(s) * f64::from(w)).sum()
        };
        *out = [weighted(&sums[0]), weighted(&sums[1])];
    }
}

/// `dx = a du + b (x - mean) + c`, channel by channel.
struct Slope {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Slope {
    fn new(statistics: &[Statistics], sums: &[[f64; 2]], gamma: &[f32], dims: Dims) -> Self {
        let groups = statistics.len();
        let each = dims.channels / groups;
        let n = (dims.rows * each) as f64;
        let of = |g: usize| {
            let [_, rest, rstd] = statistics[g].map(f64::from);
            let total = |k: usize| sums.iter().skip(g).step_by(groups).map(|s| s[k]).sum::<f64>();
            // h = (x - mean - rest) rstd, and rstd h mean(dh h) = -b (x - mean - rest)
            let (first, second) = (total(0), total(1) - rest * total(0));
            let b = -rstd.powi(3) * second / n;
            [b, -rstd * first / n - b * rest]
        };
        let groups: Vec<[f64; 2]> = (0..groups).map(of).collect();
        let channel = |i: usize| (statistics[i / each], groups[i / each]);
        Slope {
            a: (0..dims.channels).map(|i| channel(i).0[2] * gamma[i]).collect(),
            b: (0..dims.channels).map(|i| channel(i).1[0] as f32).collect(),
            c: (0..dims.channels).map(|i| channel(i).1[1] as f32).collect(),
        }
    }

    fn replace(&self, dy: &mut [f32], x: &[f32], mean: &[f32]) {
        replace(dy, x, mean, &self.a, &self.b, &self.c);
    }

    fn add(&self, sum: &mut [f32], du: &[f32], x: &[f32], mean: &[f32]) {
        add(sum, du, x, mean, &self.a, &self.b, &self.c);
    }
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn replace(du: &mut [f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32], c: &[f32]) {
    for (du, x) in du.chunks_exact_mut(a.len()).zip(x.chunks_exact(a.len())) {
        for (((((du, x), mean), a), b), c) in du.iter_mut().zip(x).zip(mean).zip(a).zip(b).zip(c) {
            *du = du.mul_add(*a, (x - mean).mul_add(*b, *c));
        }
    }
}

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn add(sum: &mut [f32], du: &[f32], x: &[f32], mean: &[f32], a: &[f32], b: &[f32], c: &[f32]) {
    let n = a.len();
    for ((sum, du), x) in sum.chunks_exact_mut(n).zip(du.chunks_exact(n)).zip(x.chunks_exact(n)) {
        for ((((((sum, du), x), mean), a), b), c) in sum.iter_mut().zip(du).zip(x).zip(mean).zip(a).zip(b).zip(c) {
            *sum += du.mul_add(*a, (x - mean).mul_add(*b, *c));
        }
    }
}

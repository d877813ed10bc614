//! Channels lie side by side, so all sums run over rows, sixteen channels at a time, and become sums over
//! groups only at the end of a block of rows. Blocks depend on the shape alone.

use multiversion::multiversion;
use multiversion::target::match_target;

use super::{Dims, GroupNorm};
use crate::device::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::lanes::Avx2;
use crate::device::cpu::lanes::{Lanes, Portable};
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

/// For every channel, the sums over rows of `t` and `t (x - pivot)`, where t is `x - pivot` if OWN, else `a`.
#[inline(always)]
fn sum_rows<L: Lanes, const OWN: bool>(a: &[f32], x: &[f32], pivot: &[f32]) -> [Vec<f32>; 2] {
    let c = pivot.len();
    let mut sums = [vec![0.0; c], vec![0.0; c]];
    let whole = c / 16 * 16;
    for at in (0..whole).step_by(16) {
        let pivots = [L::load(vector(pivot, at)), L::load(vector(pivot, at + 8))];
        let (mut first, mut second) = ([L::splat(0.0); 2], [L::splat(0.0); 2]);
        for from in (at..x.len()).step_by(c) {
            for h in 0..2 {
                let d = L::load(vector(x, from + 8 * h)).sub(pivots[h]);
                let t = if OWN { d } else { L::load(vector(a, from + 8 * h)) };
                first[h] = first[h].add(t);
                second[h] = t.mul_add(d, second[h]);
            }
        }
        for h in 0..2 {
            sums[0][at + 8 * h..][..8].copy_from_slice(&first[h].array());
            sums[1][at + 8 * h..][..8].copy_from_slice(&second[h].array());
        }
    }
    for at in whole..c {
        for from in (at..x.len()).step_by(c) {
            let d = x[from] - pivot[at];
            let t = if OWN { d } else { a[from] };
            sums[0][at] += t;
            sums[1][at] = t.mul_add(d, sums[1][at]);
        }
    }
    sums
}

#[inline(always)]
fn vector(x: &[f32], at: usize) -> &[f32; 8] {
    x[at..].first_chunk().expect("a vector should lie within its row")
}

/// Mean and sum of squared deviations of every group within a block, by two sweeps: the second one around
/// the first one's rounded mean, so that nothing cancels.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn block_moments(moments: &mut [[f64; 2]], x: &[f32], channels: usize) {
    #[inline(always)]
    fn generic<L: Lanes>(moments: &mut [[f64; 2]], x: &[f32], channels: usize) {
        let each = channels / moments.len();
        let n = (x.len() / moments.len()) as f64;
        let mut pivot = vec![0.0; channels];
        let [sums, _] = sum_rows::<L, true>(x, x, &pivot);
        for (pivot, sums) in pivot.chunks_exact_mut(each).zip(sums.chunks_exact(each)) {
            pivot.fill((total(sums) / n) as f32);
        }
        let [first, second] = sum_rows::<L, true>(x, x, &pivot);
        for (g, moments) in moments.iter_mut().enumerate() {
            let at = g * each..(g + 1) * each;
            let (first, second) = (total(&first[at.clone()]), total(&second[at]));
            *moments = [f64::from(pivot[g * each]) + first / n, second - first * first / n];
        }
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(moments, x, channels),
        _ => generic::<Portable>(moments, x, channels),
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
    #[inline(always)]
    fn generic<L: Lanes>(out: &mut [[f64; 2]], du: &[f32], x: &[f32], mean: &[f32], gamma: &[f32]) {
        let sums = sum_rows::<L, false>(du, x, mean);
        let each = mean.len() / out.len();
        for (g, out) in out.iter_mut().enumerate() {
            let at = g * each..(g + 1) * each;
            let weighted = |sums: &[f32]| -> f64 {
                let terms = sums[at.clone()].iter().zip(&gamma[at.clone()]);
                terms.map(|(&s, &w)| f64::from(s) * f64::from(w)).sum()
            };
            *out = [weighted(&sums[0]), weighted(&sums[1])];
        }
    }
    match_target! {
        "x86_64+avx2+fma" => generic::<Avx2>(out, du, x, mean, gamma),
        _ => generic::<Portable>(out, du, x, mean, gamma),
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

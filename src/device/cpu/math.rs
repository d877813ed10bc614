//! Elementary functions and reductions that vectorise: straight-line code inlined into the loops of
//! `multiversion` kernels, with fused multiply-adds spelled out, so that every build gives the same bits.

use multiversion::multiversion;

use super::lanes::Lanes;

/// `e^x` within 1 ulp; overflows to infinity, underflows to zero and keeps NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these bounds the result is infinite or rounds to zero, and the exponents below stay in range.
    let x = x.clamp(-104.0, 89.0);
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts. Adding 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_375, x));
    // Minimax fit of (e^r - 1 - r) / r^2 from the Cephes library (S. Moshier).
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_2e-3_f32, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = p.mul_add(r, c);
    }
    let p = (r * r).mul_add(p, r) + 1.0;
    // 2^n as two factors, because n reaches past the exponents of normal numbers.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `s = 1 / (1 + e^-x)` and `1 - s`, both without cancellation.
#[inline(always)]
pub(crate) fn logistic(x: f32) -> (f32, f32) {
    let small = exp(-x.abs());
    let near = 1.0 / (1.0 + small);
    let far = small * near;
    if x < 0.0 { (far, near) } else { (near, far) }
}

/// Distribution function and density of the standard normal, within 4 ulp for moderate `x`.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
    let density = FRAC_1_SQRT_TAU * exp(-0.5 * x * x);
    // Minimax fit of (1 - distribution) / density for x >= 0, relative error 6e-9 up to 14, where it vanishes.
    let a = x.abs().min(16.0);
    let mut p = 1.026_040_04e-2_f32;
    for c in [1.014_643_4e-1_f32, 4.581_517_2e-1, 1.097_09, 1.253_314_1] {
        p = p.mul_add(a, c);
    }
    let mut q = 1.026_027_54e-2_f32;
    for c in [1.014_71e-1_f32, 4.682_587e-1, 1.200_596_8, 1.673_236_1, 1.0] {
        q = q.mul_add(a, c);
    }
    let tail = density * (p / q);
    (if x > 0.0 { 1.0 - tail } else { tail }, density)
}

/// Sum.
#[inline(always)]
pub(crate) fn sum<L: Lanes>(x: &[f32]) -> f32 {
    sums::<L, false>(x, x, 0.0)[0]
}

/// `[sum of t, sum of t (y - shift)]`, where t is `y - shift` if OWN, else `x`; x and y of equal length.
#[inline(always)]
pub(crate) fn sums<L: Lanes, const OWN: bool>(x: &[f32], y: &[f32], shift: f32) -> [f32; 2] {
    let ((xs, x), (ys, y)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let ((pairs, last), (y_pairs, y_last)) = (xs.as_chunks::<2>(), ys.as_chunks::<2>());
    let (mut first, mut second) = ([L::splat(0.0); 2], [L::splat(0.0); 2]);
    for (x, y) in pairs.iter().zip(y_pairs) {
        for h in 0..2 {
            let d = L::load(&y[h]).sub(L::splat(shift));
            let t = if OWN { d } else { L::load(&x[h]) };
            first[h] = first[h].add(t);
            second[h] = t.mul_add(d, second[h]);
        }
    }
    for (x, y) in last.iter().zip(y_last) {
        let d = L::load(y).sub(L::splat(shift));
        let t = if OWN { d } else { L::load(x) };
        first[0] = first[0].add(t);
        second[0] = t.mul_add(d, second[0]);
    }
    let mut sums = [first[0].add(first[1]).sum(), second[0].add(second[1]).sum()];
    for (x, y) in x.iter().zip(y) {
        let d = y - shift;
        let t = if OWN { d } else { *x };
        sums = [sums[0] + t, t.mul_add(d, sums[1])];
    }
    sums
}

/// `sum += term`.
#[multiversion(targets("x86_64+avx2+fma+f16c"))]
pub(crate) fn accumulate(sum: &mut [f32], term: &[f32]) {
    sum.iter_mut().zip(term).for_each(|(s, t)| *s += t);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::lanes::Portable;

    /// Error in ulp of the exact value.
    fn ulps(got: f32, exact: f64) -> f64 {
        let ulp = (exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() - 23.0).exp2();
        (f64::from(got) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_accurate_and_keeps_special_values() {
        for i in -1_040_000..890_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            if exact < f64::from(f32::MAX) {
                assert!(ulps(exp(x), exact) < 1.1, "exp({x}) = {} not {exact}", exp(x));
            }
        }
        assert_eq!([exp(0.0), exp(f32::INFINITY), exp(f32::NEG_INFINITY)], [1.0, f32::INFINITY, 0.0]);
        assert_eq!([exp(88.8), exp(-1e30)], [f32::INFINITY, 0.0]);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    #[test]
    fn normal_is_accurate_and_keeps_special_values() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let (cdf, density) = normal(x);
            let exact = (-0.5 * f64::from(x).powi(2)).exp() / std::f64::consts::TAU.sqrt();
            let room = 4.0 + 0.6 * x * x; // e^(-x^2 / 2) magnifies the rounding of its argument
            assert!(ulps(density, exact) < f64::from(room), "density({x}) = {density} not {exact}");
            // 1/2 + p(x) (x + x^3/3 + x^5/15 + ...); it cancels where x is very negative.
            let (mut term, mut sum, mut n) = (f64::from(x), f64::from(x), 1.0);
            while term.abs() > 1e-18 {
                n += 2.0;
                term *= f64::from(x).powi(2) / n;
                sum += term;
            }
            let exact = 0.5 + exact * sum;
            assert!((f64::from(cdf) - exact).abs() < 1.2e-7, "cdf({x}) = {cdf} not {exact}");
            assert!(x < -4.0 || ulps(cdf, exact) < f64::from(room), "cdf({x}) = {cdf} not {exact}");
        }
        assert_eq!(
            [normal(f32::INFINITY), normal(f32::NEG_INFINITY), normal(30.0)],
            [(1.0, 0.0), (0.0, 0.0), (1.0, 0.0)]
        );
        assert!(normal(f32::NAN).0.is_nan() && normal(f32::NAN).1.is_nan());
    }

    #[test]
    fn reductions_cover_every_element() {
        let x: Vec<f32> = (0..45).map(|i| i as f32).collect();
        let y: Vec<f32> = (0..45).map(|i| (i % 4) as f32).collect();
        assert_eq!(sum::<Portable>(&x), 990.0);
        assert_eq!(sums::<Portable, false>(&x, &y, 1.0), [990.0, 484.0]);
        assert_eq!(sums::<Portable, true>(&x, &y, 1.0), [21.0, 67.0]);
        assert_eq!(sum::<Portable>(&[]), 0.0);
    }
}

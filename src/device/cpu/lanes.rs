//! Eight numbers at once, for loops whose sums must stay in registers: compilers turn arrays of partial sums
//! into scalars. Kernels are generic over [`Lanes`] and pick the implementation in a `multiversion` function:
//!
//! ```text
//! match_target! { "x86_64+avx2+fma" => kernel::<Avx2>(..), _ => kernel::<Portable>(..) }
//! ```
//!
//! Both give the same bits.

/// Eight f32 numbers.
pub(crate) trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; 8]) -> Self;
    fn store(self, to: &mut [f32; 8]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once
    fn mul_add(self, factor: Self, term: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// The larger one, `self` if neither is
    fn max(self, other: Self) -> Self;
    /// `2^n` of `1.5 * 2^23 + n`
    fn power_of_two(self) -> Self;

    /// `e^x` of `x <= 0` within 1 ulp; keeps NaN.
    #[inline(always)]
    fn exp_negative(self) -> Self {
        // As in `math::exp`, but 2^n = 2^(n + 64) 2^-64, which reaches down to where results round to zero.
        const ROUND: f32 = 12_582_912.0;
        let s = Self::splat;
        let x = self.max(s(-104.0));
        let shifted = x.mul_add(s(std::f32::consts::LOG2_E), s(ROUND));
        let n = shifted.sub(s(ROUND));
        let r = n.mul_add(s(2.121_944_4e-4), n.mul_add(s(-0.693_359_375), x));
        let mut p = s(1.987_569_1e-4);
        for c in [1.398_2e-3_f32, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            p = p.mul_add(r, s(c));
        }
        let p = r.mul(r).mul_add(p, r).add(s(1.0));
        p.mul(shifted.add(s(64.0)).power_of_two()).mul(s(1.0 / 18_446_744_073_709_551_616.0))
    }

    /// The eight numbers.
    #[inline(always)]
    fn array(self) -> [f32; 8] {
        let mut array = [0.0; 8];
        self.store(&mut array);
        array
    }

    /// Their sum: of halves, quarters and eighths in turn.
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.array();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// Plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; 8])
    }

    #[inline(always)]
    fn load(x: &[f32; 8]) -> Self {
        Portable(*x)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        *to = self.0;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], term.0[i])))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Portable(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// A register. To be named only in functions compiled for AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    // SAFETY of every block below: `Avx2` is named only in functions compiled for AVX2 and FMA, which run only
    // on processors that have them; loads and stores are of whole arrays.
    impl Lanes for Avx2 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx2(unsafe { _mm256_set1_ps(x) })
        }

        #[inline(always)]
        fn load(x: &[f32; 8]) -> Self {
            Avx2(unsafe { std::mem::transmute::<[f32; 8], __m256>(*x) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; 8]) {
            *to = unsafe { std::mem::transmute::<__m256, [f32; 8]>(self.0) };
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Avx2(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // The instruction returns its second operand unless the first one is larger.
            Avx2(unsafe { _mm256_max_ps(other.0, self.0) })
        }

        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Avx2(unsafe { _mm256_div_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn power_of_two(self) -> Self {
            Avx2(unsafe {
                let exponents = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
                _mm256_castsi256_ps(_mm256_add_epi32(exponents, _mm256_set1_epi32(0x3f80_0000)))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_negative_is_accurate_and_keeps_special_values() {
        for i in 0..1_040_000 {
            let x = i as f32 * -1e-4;
            let (got, exact) = (Portable::splat(x).exp_negative().array()[0], f64::from(x).exp());
            let ulp = (exact.max(f64::from(f32::MIN_POSITIVE)).log2().floor() - 23.0).exp2();
            assert!((f64::from(got) - exact).abs() < 1.1 * ulp, "exp({x}) = {got} not {exact}");
        }
        let of = |x: f32| Portable::splat(x).exp_negative().array()[0];
        assert_eq!([of(0.0), of(-1e30), of(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(of(f32::NAN).is_nan());
    }
}

//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011) and Box-Muller normals. A number is a function of (seed, stream, step, index) alone: there is no
//! state to save, and a dropout mask can be drawn again in the backward pass.
//!
//! Logarithm, sine and cosine are fixed sequences of correctly rounded operations (add, multiply, fused
//! multiply-add, square root), so that every device produces the same bits. The polynomials are the single
//! precision minimax fits of the Cephes library (S. Moshier).

use multiversion::multiversion;

/// One stream of random numbers; `stream` keeps different uses of a seed independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u32,
}

impl Philox {
    /// Stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u32) -> Self {
        Philox { seed, stream }
    }

    /// Four random words for `(step, block)`.
    #[inline(always)]
    pub fn words(&self, step: u32, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, step, (self.seed >> 32) as u32];
        philox4x32(counter, [self.seed as u32, self.stream])
    }

    /// Word `index` of `step`.
    pub fn word(&self, step: u32, index: u64) -> u32 {
        self.words(step, index / 4)[(index % 4) as usize]
    }

    /// A whole number in `0..bound`, uniform up to 2^-32.
    pub fn below(&self, step: u32, index: u64, bound: usize) -> usize {
        ((u64::from(self.word(step, index)) * bound as u64) >> 32) as usize
    }

    /// A number in the open interval (0, 1).
    pub fn uniform(&self, step: u32, index: u64) -> f32 {
        unit(self.word(step, index))
    }

    /// Numbers `4 block ..` of `step` in the open interval (0, 1): four of [`Philox::uniform`].
    #[inline(always)]
    pub fn uniforms(&self, step: u32, block: u64) -> [f32; 4] {
        let [a, b, c, d] = self.words(step, block);
        [unit(a), unit(b), unit(c), unit(d)]
    }

    /// Fills `out` with standard normals number `first ..` of `step`; `first` must be a multiple of four.
    pub fn normals(&self, step: u32, first: u64, out: &mut [f32]) {
        assert!(first.is_multiple_of(4), "normals should start at a multiple of four, not {first}");
        fill_normals(self, step, first / 4, out);
    }

    /// `len` standard normals of `step`.
    pub fn normal_vec(&self, step: u32, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        self.normals(step, 0, &mut out);
        out
    }
}

/// Blocks computed side by side, for the compiler to use vector instructions.
const LANES: usize = 8;

#[multiversion(targets("x86_64+avx2+fma+f16c"))]
fn fill_normals(philox: &Philox, step: u32, first_block: u64, out: &mut [f32]) {
    for (i, numbers) in out.chunks_mut(4 * LANES).enumerate() {
        let [a, b, c, d] = philox_lanes(philox, step, first_block + (i * LANES) as u64);
        let mut normals = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            (normals[0][lane], normals[1][lane]) = box_muller(a[lane], b[lane]);
        }
        for lane in 0..LANES {
            (normals[2][lane], normals[3][lane]) = box_muller(c[lane], d[lane]);
        }
        store(numbers, normals);
    }
}

/// Puts number `w` of lane `l` at `4 l + w`; what does not fit is dropped.
#[inline(always)]
fn store(out: &mut [f32], numbers: [[f32; LANES]; 4]) {
    let mut all = [0.0; 4 * LANES];
    for lane in 0..LANES {
        for (word, lanes) in numbers.iter().enumerate() {
            all[4 * lane + word] = lanes[lane];
        }
    }
    out.copy_from_slice(&all[..out.len()]);
}

/// [`philox4x32`] of consecutive blocks: word `w` of block `l` is `[w][l]`.
#[inline(always)]
fn philox_lanes(philox: &Philox, step: u32, first_block: u64) -> [[u32; LANES]; 4] {
    let blocks: [u64; LANES] = std::array::from_fn(|lane| first_block + lane as u64);
    let (mut c0, mut c1) = (blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32));
    let (mut c2, mut c3) = ([step; LANES], [(philox.seed >> 32) as u32; LANES]);
    let mut key = [philox.seed as u32, philox.stream];
    for _ in 0..10 {
        for lane in 0..LANES {
            let p0 = u64::from(c0[lane]) * 0xD251_1F53;
            let p1 = u64::from(c2[lane]) * 0xCD9E_8D57;
            c0[lane] = (p1 >> 32) as u32 ^ c1[lane] ^ key[0];
            c1[lane] = p1 as u32;
            c2[lane] = (p0 >> 32) as u32 ^ c3[lane] ^ key[1];
            c3[lane] = p0 as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(counter[0]) * 0xD251_1F53;
        let p1 = u64::from(counter[2]) * 0xCD9E_8D57;
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The top 23 bits as the middle of one of 2^23 equal cells of (0, 1): exact in f32, never 0 or 1.
#[inline(always)]
fn unit(word: u32) -> f32 {
    ((word >> 9) as i32 as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// Two independent standard normals from two words.
#[inline(always)]
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let radius = (-2.0 * ln(unit(a))).sqrt();
    let (sin, cos) = sin_cos_turns(unit(b));
    (radius * cos, radius * sin)
}

/// Natural logarithm of a normal positive number.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = m 2^e with m in [sqrt(1/2), sqrt(2))
    let bits = x.to_bits().wrapping_sub(0x3f35_04f3);
    let e = ((bits as i32) >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3) - 1.0;
    let z = m * m;
    let mut p = 7.037_683_6e-2_f32;
    for c in [
        -1.151_461e-1_f32,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333_1e-1,
    ] {
        p = p.mul_add(m, c);
    }
    let y = (m * z).mul_add(p, e * -2.121_944_4e-4);
    let y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_375, m + y)
}

/// Sine and cosine of `turns` full turns, `turns` in [0, 1).
#[inline(always)]
fn sin_cos_turns(turns: f32) -> (f32, f32) {
    let quarters = turns * 4.0;
    // Adding 3 * 2^22 rounds to a whole number, which is then in the low bits: vector instructions have no better way.
    let rounded = quarters + 12_582_912.0;
    let quadrant = rounded.to_bits();
    let x = (quarters - (rounded - 12_582_912.0)) * std::f32::consts::FRAC_PI_2; // in [-pi/4, pi/4]
    let z = x * x;
    let s = (-1.951_529_6e-4_f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1);
    let sin = (s * z).mul_add(x, x);
    let c = 2.443_315_7e-5_f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2);
    let cos = (c * z).mul_add(z, z.mul_add(-0.5, 1.0));
    let (s, c) = if quadrant & 1 == 1 { (cos, sin) } else { (sin, cos) };
    let sign = |negative: bool, v: f32| if negative { -v } else { v };
    (sign(quadrant & 2 == 2, s), sign((quadrant + 1) & 2 == 2, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn elementary_functions_are_accurate() {
        for i in 0..200_000_u32 {
            let u = unit(i.wrapping_mul(0x9E37_79B9));
            let (s, c) = sin_cos_turns(u);
            let angle = f64::from(u) * std::f64::consts::TAU;
            assert!((f64::from(s) - angle.sin()).abs() < 1.5e-7, "sin of {u} turns");
            assert!((f64::from(c) - angle.cos()).abs() < 1.5e-7, "cos of {u} turns");
            let exact = f64::from(u).ln();
            assert!((f64::from(ln(u)) - exact).abs() <= 2e-7 * exact.abs().max(1e-3), "ln {u}");
        }
    }

    /// Many at once are the same bits as one by one.
    #[test]
    fn filling_equals_single_numbers() {
        let philox = Philox::new(0x0123_4567_89ab_cdef, 42);
        for (first, len) in [(0, 1), (4, 31), (8, 32), (0xffff_ffff * 4 - 16, 101)] {
            let mut normals = vec![0.0; len];
            philox.normals(9, first, &mut normals);
            for (i, n) in normals.iter().enumerate() {
                let at = first + i as u64;
                assert_eq!(philox.uniforms(9, at / 4)[(at % 4) as usize], philox.uniform(9, at));
                let words = philox.words(9, at / 4);
                let half = (at % 4 / 2 * 2) as usize;
                let (x, y) = box_muller(words[half], words[half + 1]);
                assert_eq!(n.to_bits(), if at.is_multiple_of(2) { x } else { y }.to_bits(), "normal {at}");
            }
        }
    }

    #[test]
    fn normals_have_the_right_moments_and_are_independent_of_the_split() {
        let n = 400_000;
        let philox = Philox::new(7, 3);
        let all = philox.normal_vec(5, n);
        let mean = |p: i32| all.iter().map(|&x| f64::from(x).powi(p)).sum::<f64>() / n as f64;
        assert!(mean(1).abs() < 5e-3 && (mean(2) - 1.0).abs() < 1e-2 && mean(3).abs() < 2e-2);
        assert!((mean(4) - 3.0).abs() < 6e-2);
        let mut part = vec![0.0; 1001];
        philox.normals(5, 4000, &mut part);
        assert_eq!(part, all[4000..5001]);
        assert_ne!(Philox::new(7, 4).normal_vec(5, 8), all[..8]);
        assert_ne!(Philox::new(7 | 1 << 40, 3).normal_vec(5, 8), all[..8]);
    }
}

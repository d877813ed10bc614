//! Search for numbers that are none.

use half::f16;
use multiversion::multiversion;

use crate::HostData;

/// First index and count of the NaNs and infinities.
pub(super) fn non_finite(data: &HostData) -> Option<(usize, usize)> {
    // The common case is a pass without branches.
    let clean = match data {
        HostData::F32(x) => all_finite_f32(x),
        HostData::F16(x) => all_finite_f16(x),
    };
    if clean {
        return None;
    }
    let places: Vec<usize> = match data {
        HostData::F32(x) => (0..x.len()).filter(|&i| !x[i].is_finite()).collect(),
        HostData::F16(x) => (0..x.len()).filter(|&i| !x[i].is_finite()).collect(),
    };
    places.first().map(|&first| (first, places.len()))
}

#[multiversion(targets("x86_64+avx2"))]
fn all_finite_f32(x: &[f32]) -> bool {
    x.chunks(4096).all(|chunk| {
        let worst = chunk.iter().fold(0, |worst: u32, v| worst.max(v.to_bits() & 0x7f80_0000));
        worst < 0x7f80_0000
    })
}

#[multiversion(targets("x86_64+avx2"))]
fn all_finite_f16(x: &[f16]) -> bool {
    x.chunks(4096).all(|chunk| {
        let worst = chunk.iter().fold(0, |worst: u16, v| worst.max(v.to_bits() & 0x7c00));
        worst < 0x7c00
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_kind_anywhere() {
        for at in [0, 1, 4095, 4096, 9999] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut wide = vec![f32::MAX; 10_000];
                let mut narrow = vec![f16::MAX; 10_000];
                assert_eq!(non_finite(&wide[..].into()), None);
                assert_eq!(non_finite(&narrow[..].into()), None);
                (wide[at], narrow[at]) = (bad, f16::from_f32(bad));
                assert_eq!(non_finite(&wide[..].into()), Some((at, 1)));
                assert_eq!(non_finite(&narrow[..].into()), Some((at, 1)));
            }
        }
        assert_eq!(non_finite(&vec![f32::NAN, 1.0, f32::NAN].into()), Some((0, 2)));
    }
}

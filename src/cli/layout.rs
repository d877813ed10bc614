//! Files hold channels first, the engine channels last: conversions at the edge.

/// (N, C, H, W) -> (N, H, W, C).
pub fn pictures_in(numbers: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    videos_in(numbers, [n, c, 1, h, w])
}

/// (N, H, W, C) -> (N, C, H, W); the sizes are those of the result.
pub fn pictures_out(numbers: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    videos_out(numbers, [n, c, 1, h, w])
}

/// (B, C, F, H, W) -> (B*F, H, W, C).
pub fn videos_in(numbers: &[f32], [b, c, f, h, w]: [usize; 5]) -> Vec<f32> {
    let pixels = h * w;
    let mut out = vec![0.0; numbers.len()];
    for (plane, values) in numbers.chunks(pixels.max(1)).enumerate() {
        let (video, channel, frame) = (plane / (c * f), plane / f % c, plane % f);
        let first = (video * f + frame) * pixels * c + channel;
        values.iter().enumerate().for_each(|(i, &v)| out[first + i * c] = v);
    }
    debug_assert_eq!(numbers.len(), b * c * f * pixels);
    out
}

/// (B*F, H, W, C) -> (B, C, F, H, W); the sizes are those of the result.
pub fn videos_out(numbers: &[f32], [b, c, f, h, w]: [usize; 5]) -> Vec<f32> {
    let pixels = h * w;
    let mut out = vec![0.0; numbers.len()];
    for (plane, values) in out.chunks_mut(pixels.max(1)).enumerate() {
        let (video, channel, frame) = (plane / (c * f), plane / f % c, plane % f);
        let first = (video * f + frame) * pixels * c + channel;
        values.iter_mut().enumerate().for_each(|(i, v)| *v = numbers[first + i * c]);
    }
    debug_assert_eq!(numbers.len(), b * c * f * pixels);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let dims = [2, 3, 4, 2, 5];
        let x: Vec<f32> = (0..240).map(|i| i as f32).collect();
        let inner = videos_in(&x, dims);
        // video 1, channel 2, frame 3, row 1, column 4
        assert_eq!(inner[(((4 + 3) * 2 + 1) * 5 + 4) * 3 + 2], x[(((3 + 2) * 4 + 3) * 2 + 1) * 5 + 4]);
        assert_eq!(videos_out(&inner, dims), x);
        assert_eq!(pictures_out(&pictures_in(&x, [8, 3, 2, 5]), [8, 3, 2, 5]), x);
    }
}

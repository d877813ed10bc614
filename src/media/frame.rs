//! One RGB picture in memory, its conversion to and from the model's values, and fitting it to a size.

use crate::{Error, Result};

/// An RGB picture, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// (height, width, 3), row-major, R G B.
    pub pixels: Vec<u8>,
}

/// How a picture is brought to another aspect ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// Fill the target; what sticks out on two opposite sides is cut off evenly.
    #[default]
    Crop,
    /// Show everything; the rest of the target is black.
    Letterbox,
}

impl Frame {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, rgb: [u8; 3]) -> Self {
        Frame { width, height, pixels: rgb.repeat(width * height) }
    }

    /// Values in [-1, 1] (v = x / 127.5 - 1) as (height, width, 3), channels last.
    pub fn to_values(&self) -> Vec<f32> {
        self.pixels.iter().map(|&x| x as f32 / 127.5 - 1.0).collect()
    }

    /// The inverse of [`to_values`](Self::to_values): rounds to the nearest of 256 levels and clips; NaN becomes 0.
    ///
    /// # Shapes
    /// `values` (height, width, 3).
    ///
    /// # Errors
    /// [`Error::Shape`] if the count differs.
    pub fn from_values(width: usize, height: usize, values: &[f32]) -> Result<Self> {
        check_count(width, height, values.len())?;
        Ok(Frame { width, height, pixels: values.iter().map(|&v| to_level(v)).collect() })
    }

    /// Values in [-1, 1] as (3, height, width), one plane a channel.
    pub fn to_planes(&self) -> Vec<f32> {
        let n = self.width * self.height;
        let mut planes = vec![0.0; 3 * n];
        for (i, rgb) in self.pixels.chunks_exact(3).enumerate() {
            for c in 0..3 {
                planes[c * n + i] = rgb[c] as f32 / 127.5 - 1.0;
            }
        }
        planes // (3, height, width)
    }

    /// The inverse of [`to_planes`](Self::to_planes), rounding as [`from_values`](Self::from_values) does.
    ///
    /// # Errors
    /// [`Error::Shape`] if `planes` does not hold (3, height, width).
    pub fn from_planes(width: usize, height: usize, planes: &[f32]) -> Result<Self> {
        check_count(width, height, planes.len())?;
        let n = width * height;
        let mut pixels = Vec::with_capacity(3 * n);
        for i in 0..n {
            pixels.extend([to_level(planes[i]), to_level(planes[n + i]), to_level(planes[2 * n + i])]);
        }
        Ok(Frame { width, height, pixels })
    }

    /// This picture at `width` x `height`: antialiased bilinear (a triangle filter as wide as the reduction), on the
    /// stored values as they are. A picture that already has the size comes back unchanged.
    pub fn fit(&self, width: usize, height: usize, fit: Fit) -> Frame {
        if (self.width, self.height) == (width, height) {
            return self.clone();
        }
        let (sw, sh) = (self.width as f64, self.height as f64);
        let (across, down) = (width as f64 / sw, height as f64 / sh);
        match fit {
            Fit::Crop => {
                let scale = across.max(down);
                let (w, h) = ((width as f64 / scale).min(sw), (height as f64 / scale).min(sh));
                self.resample([(sw - w) / 2.0, w], [(sh - h) / 2.0, h], width, height)
            }
            Fit::Letterbox => {
                let scale = across.min(down);
                let w = ((sw * scale).round() as usize).clamp(1, width);
                let h = ((sh * scale).round() as usize).clamp(1, height);
                let inner = self.resample([0.0, sw], [0.0, sh], w, h);
                let mut out = Frame::filled(width, height, [0; 3]);
                out.paste(&inner, (width - w) / 2, (height - h) / 2);
                out
            }
        }
    }

    /// Copies `other` to column `x`, row `y`; it must lie inside.
    pub(crate) fn paste(&mut self, other: &Frame, x: usize, y: usize) {
        for row in 0..other.height {
            let from = &other.pixels[row * other.width * 3..][..other.width * 3];
            self.pixels[((y + row) * self.width + x) * 3..][..from.len()].copy_from_slice(from);
        }
    }

    /// The part of this picture that starts at `x` = [left, width] and `y` = [top, height], in source pixels with
    /// fractions, at `width` x `height`. Both passes are f32; one rounding at the end.
    fn resample(&self, x: [f64; 2], y: [f64; 2], width: usize, height: usize) -> Frame {
        let columns = taps(x, self.width, width);
        let rows = taps(y, self.height, height);
        let mut narrow = vec![0f32; self.height * width * 3]; // (source height, width, 3)
        for (source, target) in self.pixels.chunks_exact(self.width * 3).zip(narrow.chunks_exact_mut(width * 3)) {
            for (tap, out) in columns.iter().zip(target.chunks_exact_mut(3)) {
                for (weight, rgb) in tap.weights.iter().zip(source[tap.first * 3..].chunks_exact(3)) {
                    for c in 0..3 {
                        out[c] += weight * rgb[c] as f32;
                    }
                }
            }
        }
        let mut pixels = Vec::with_capacity(width * height * 3);
        let mut sum = vec![0f32; width * 3];
        for tap in &rows {
            sum.fill(0.0);
            for (weight, row) in tap.weights.iter().zip(narrow[tap.first * width * 3..].chunks_exact(width * 3)) {
                for (s, v) in sum.iter_mut().zip(row) {
                    *s += weight * v;
                }
            }
            pixels.extend(sum.iter().map(|v| v.round().clamp(0.0, 255.0) as u8));
        }
        Frame { width, height, pixels }
    }
}

/// The source samples that make one target sample: `weights` of the samples from `first` on; they sum to 1.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// Triangle-filter taps from `span` = [start, length] of `source` samples to `target` samples. Reduction widens the
/// triangle to the scale (antialiasing), enlargement keeps it at 1 (bilinear). Samples outside the picture have no
/// weight, so its edge stays clean.
fn taps([start, length]: [f64; 2], source: usize, target: usize) -> Vec<Tap> {
    let scale = length / target as f64;
    let radius = scale.max(1.0);
    let tap = |i: usize| {
        let centre = start + (i as f64 + 0.5) * scale;
        let first = (centre - radius).floor().max(0.0) as usize;
        let last = ((centre + radius).ceil() as usize).clamp(1, source) - 1;
        let first = first.min(last);
        let weights: Vec<f64> =
            (first..=last).map(|s| (1.0 - ((s as f64 + 0.5 - centre) / radius).abs()).max(0.0)).collect();
        let total: f64 = weights.iter().sum();
        Tap { first, weights: weights.iter().map(|w| (w / total) as f32).collect() }
    };
    (0..target).map(tap).collect()
}

fn to_level(value: f32) -> u8 {
    // `as` saturates and sends NaN to 0.
    ((value + 1.0) * 127.5).round() as u8
}

fn check_count(width: usize, height: usize, found: usize) -> Result<()> {
    let needed = width.checked_mul(height).and_then(|n| n.checked_mul(3));
    if needed == Some(found) {
        return Ok(());
    }
    Err(Error::shape("frame", format!("{width}x{height} RGB needs {needed:?} values, found {found}")))
}

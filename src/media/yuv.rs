//! RGB to and from 4:2:0 YCbCr, 8 bits (ITU-T H.273). One chroma sample serves its 2x2 pixels as it is, and is their
//! mean: what ffmpeg does by default, and with it most tools that prepare clips, so that both readers agree to about a
//! level.

use rusty_h264::YuvFrame;

use super::Frame;

/// How to read a YCbCr picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Colour {
    /// Luma weights of red and blue.
    pub weights: [f32; 2],
    /// Y from 0 to 255 rather than 16 to 235, chroma likewise.
    pub full_range: bool,
}

/// What our own files use: BT.601, limited range. Readers that look at no tags (OpenCV, plain swscale) assume it too.
pub(crate) const BT601: Colour = Colour { weights: [0.299, 0.114], full_range: false };

impl Colour {
    /// By `matrix_coefficients`; `None` for a matrix that is not a matrix of this kind. Unspecified (2) is BT.601 at
    /// every size, as in ffmpeg, so that both readers agree.
    pub fn from_code(matrix: u8, full_range: bool) -> Option<Self> {
        let weights = match matrix {
            1 => [0.2126, 0.0722],
            2 | 5 | 6 => [0.299, 0.114],
            4 => [0.30, 0.11],
            7 => [0.212, 0.087],
            9 => [0.2627, 0.0593],
            _ => return None,
        };
        Some(Colour { weights, full_range })
    }
}

/// The part of `yuv` at (`left`, `top`) of `width` x `height`, all in pixels, as RGB. It must lie inside.
pub(crate) fn to_rgb(yuv: &YuvFrame, part: (usize, usize, usize, usize), colour: Colour) -> Frame {
    let (left, top, width, height) = part;
    let [kr, kb] = colour.weights;
    let kg = 1.0 - kr - kb;
    let (offset, luma, chroma) = if colour.full_range { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
    let red = 2.0 * (1.0 - kr) * chroma;
    let blue = 2.0 * (1.0 - kb) * chroma;
    let (green_u, green_v) = (blue * kb / kg, red * kr / kg);
    let columns = yuv.chroma_width();
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in top..top + height {
        let lumas = &yuv.y[y * yuv.width..][..yuv.width];
        let [us, vs] = [&yuv.u, &yuv.v].map(|plane| &plane[y / 2 * columns..][..columns]);
        for x in left..left + width {
            let [u, v] = [us[x / 2], vs[x / 2]].map(|c| c as f32 - 128.0);
            let l = (lumas[x] as f32 - offset) * luma;
            let rgb = [l + red * v, l - green_u * u - green_v * v, l + blue * u];
            // `as` saturates.
            pixels.extend(rgb.map(|c| c.round() as u8));
        }
    }
    Frame { width, height, pixels }
}

/// `frame` as [`BT601`], padded to even sides by repeating its last row and column.
pub(crate) fn from_rgb(frame: &Frame) -> YuvFrame {
    let [kr, kb] = BT601.weights;
    let kg = 1.0 - kr - kb;
    let (width, height) = (frame.width.next_multiple_of(2), frame.height.next_multiple_of(2));
    let mut yuv = YuvFrame::black(width, height);
    let mut chroma = vec![[0f32; 2]; width * height];
    for y in 0..height {
        let row = &frame.pixels[y.min(frame.height - 1) * frame.width * 3..];
        for x in 0..width {
            let at = 3 * x.min(frame.width - 1);
            let [r, g, b] = [row[at] as f32, row[at + 1] as f32, row[at + 2] as f32];
            let l = kr * r + kg * g + kb * b;
            yuv.y[y * width + x] = (16.0 + l * 219.0 / 255.0).round() as u8;
            chroma[y * width + x] = [(b - l) / (2.0 * (1.0 - kb)), (r - l) / (2.0 * (1.0 - kr))];
        }
    }
    let columns = width / 2;
    for y in 0..height / 2 {
        for x in 0..columns {
            let [mut u, mut v] = [0.0; 2];
            for at in [2 * y * width + 2 * x, (2 * y + 1) * width + 2 * x] {
                for [cb, cr] in &chroma[at..at + 2] {
                    u += 0.25 * cb;
                    v += 0.25 * cr;
                }
            }
            yuv.u[y * columns + x] = (128.0 + u * 224.0 / 255.0).round() as u8;
            yuv.v[y * columns + x] = (128.0 + v * 224.0 / 255.0).round() as u8;
        }
    }
    yuv
}

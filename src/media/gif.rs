//! Writing GIF: one palette for the whole clip, exact where the clip has at most 256 colours, else by median cut with
//! error-diffusion dithering.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use gif::{DisposalMethod, Encoder, EncodingError, Repeat};

use super::{Frame, check_clip, check_fps};
use crate::fs::write_atomically;
use crate::{Error, Result};

type Rgb = [u8; 3];

/// Colours in a palette.
const COLOURS: usize = 256;

/// Writes `frames` to `path` as a GIF that loops for ever. GIF counts time in 1/100 s: delays are rounded so that the
/// clip as a whole keeps `fps`, and 50 a second is the fastest that browsers show.
///
/// # Errors
/// [`Error::Shape`] for no frames or frames of several sizes, [`Error::Config`] for a rate or size out of range,
/// [`Error::Io`].
pub fn write_gif(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    let (width, height) = check_clip("gif", frames)?;
    check_fps(fps)?;
    let (Ok(w), Ok(h)) = (u16::try_from(width), u16::try_from(height)) else {
        return Err(Error::config("--width", format!("{width}x{height} is more than GIF holds (65535 a side)")));
    };
    let (palette, exact) = palette(frames);
    let mut nearest = Nearest::new(&palette);
    let time = |i: usize| (i as f64 * 100.0 / fps).round() as u64;
    write_atomically(path, |file| {
        let mut out = BufWriter::new(file);
        let mut encoder = Encoder::new(&mut out, w, h, palette.as_flattened()).map_err(as_io)?;
        encoder.set_repeat(Repeat::Infinite).map_err(as_io)?;
        for (i, frame) in frames.iter().enumerate() {
            let indices = match &exact {
                Some(index) => frame.pixels.as_chunks::<3>().0.iter().map(|rgb| index[rgb]).collect(),
                None => dithered(frame, &palette, &mut nearest),
            };
            let image = gif::Frame {
                width: w,
                height: h,
                delay: (time(i + 1) - time(i)).clamp(2, u16::MAX as u64) as u16,
                dispose: DisposalMethod::Keep,
                buffer: indices.into(),
                ..gif::Frame::default()
            };
            encoder.write_frame(&image).map_err(as_io)?;
        }
        drop(encoder);
        out.flush()
    })
}

fn as_io(error: EncodingError) -> io::Error {
    match error {
        EncodingError::Io(e) => e,
        other => io::Error::other(other.to_string()),
    }
}

/// The palette, and the index of every colour if it holds them all.
fn palette(frames: &[Frame]) -> (Vec<Rgb>, Option<HashMap<Rgb, u8>>) {
    let mut counts: HashMap<Rgb, u64> = HashMap::new();
    let all = frames.iter().flat_map(|frame| frame.pixels.as_chunks::<3>().0);
    for rgb in all.clone() {
        *counts.entry(*rgb).or_default() += 1;
        if counts.len() > COLOURS {
            break;
        }
    }
    if counts.len() <= COLOURS {
        let mut colours: Vec<Rgb> = counts.into_keys().collect();
        colours.sort_unstable();
        let index = colours.iter().enumerate().map(|(i, rgb)| (*rgb, i as u8)).collect();
        return (colours, Some(index));
    }
    // 5 bits a channel are enough to place 256 colours; their means keep the other three.
    let mut cells = vec![([0u64; 3], 0u64); 1 << 15];
    for rgb in all {
        let (sum, count) = &mut cells[cell(*rgb)];
        for c in 0..3 {
            sum[c] += rgb[c] as u64;
        }
        *count += 1;
    }
    let used = cells.iter().filter(|(_, count)| *count > 0);
    let colours = used.map(|(sum, count)| Colour { mean: sum.map(|s| s as f64 / *count as f64), count: *count as f64 });
    (median_cut(colours.collect()), None)
}

fn cell(rgb: Rgb) -> usize {
    rgb.iter().fold(0, |cell, &c| cell << 5 | (c >> 3) as usize)
}

/// A colour and how many pixels have it.
struct Colour {
    mean: [f64; 3],
    count: f64,
}

/// Splits the box of colours with the greatest error, across its widest channel at its mean, until there are enough.
fn median_cut(colours: Vec<Colour>) -> Vec<Rgb> {
    let mut boxes = vec![Box::new(colours)];
    while boxes.len() < COLOURS {
        let worst = (0..boxes.len()).max_by(|&a, &b| boxes[a].error().total_cmp(&boxes[b].error()));
        let Some(worst) = worst.filter(|&i| boxes[i].colours.len() > 1) else { break };
        let (low, high) = boxes.swap_remove(worst).split();
        boxes.extend([low, high]);
    }
    boxes.iter().map(|b| b.mean.map(|m| m.round() as u8)).collect()
}

/// Colours that will share an entry of the palette.
struct Box {
    colours: Vec<Colour>,
    mean: [f64; 3],
    /// Sum over its pixels of the squared distance to the mean, by channel.
    spread: [f64; 3],
}

impl Box {
    fn new(colours: Vec<Colour>) -> Self {
        let total: f64 = colours.iter().map(|c| c.count).sum();
        let mean = [0, 1, 2].map(|k| colours.iter().map(|c| c.count * c.mean[k]).sum::<f64>() / total);
        let spread = [0, 1, 2].map(|k| colours.iter().map(|c| c.count * (c.mean[k] - mean[k]).powi(2)).sum());
        Box { colours, mean, spread }
    }

    fn error(&self) -> f64 {
        if self.colours.len() > 1 { self.spread.iter().sum() } else { -1.0 }
    }

    fn split(self) -> (Box, Box) {
        let widest = (0..3).max_by(|&a, &b| self.spread[a].total_cmp(&self.spread[b])).unwrap_or(0);
        let at = self.mean[widest];
        let (low, high): (Vec<_>, Vec<_>) = self.colours.into_iter().partition(|c| c.mean[widest] < at);
        (Box::new(low), Box::new(high))
    }
}

/// Finds the palette's nearest colour; remembers the answer for each of 2^18 cells.
struct Nearest<'a> {
    palette: &'a [Rgb],
    known: Vec<u16>,
}

impl<'a> Nearest<'a> {
    const UNKNOWN: u16 = u16::MAX;

    fn new(palette: &'a [Rgb]) -> Self {
        Nearest { palette, known: vec![Self::UNKNOWN; 1 << 18] }
    }

    fn index(&mut self, rgb: Rgb) -> u8 {
        let cell = rgb.iter().fold(0, |cell, &c| cell << 6 | (c >> 2) as usize);
        if self.known[cell] == Self::UNKNOWN {
            let distance = |p: &Rgb| (0..3).map(|c| (p[c] as i32 - rgb[c] as i32).pow(2)).sum::<i32>();
            let best = (0..self.palette.len()).min_by_key(|&i| distance(&self.palette[i])).unwrap_or(0);
            self.known[cell] = best as u16;
        }
        self.known[cell] as u8
    }
}

/// Floyd-Steinberg: what a pixel's colour misses goes to its neighbours, 7/16 on, 3/16, 5/16 and 1/16 below.
fn dithered(frame: &Frame, palette: &[Rgb], nearest: &mut Nearest) -> Vec<u8> {
    let width = frame.width;
    let mut indices = Vec::with_capacity(width * frame.height);
    // One pixel of margin on each side.
    let mut here = vec![[0f32; 3]; width + 2];
    let mut below = here.clone();
    for row in frame.pixels.chunks_exact(width * 3) {
        for (x, rgb) in row.as_chunks::<3>().0.iter().enumerate() {
            let wanted: [f32; 3] = std::array::from_fn(|c| (rgb[c] as f32 + here[x + 1][c]).clamp(0.0, 255.0));
            let index = nearest.index(wanted.map(|v| v.round() as u8));
            indices.push(index);
            for c in 0..3 {
                let missed = wanted[c] - palette[index as usize][c] as f32;
                here[x + 2][c] += missed * (7.0 / 16.0);
                below[x][c] += missed * (3.0 / 16.0);
                below[x + 1][c] += missed * (5.0 / 16.0);
                below[x + 2][c] += missed * (1.0 / 16.0);
            }
        }
        std::mem::swap(&mut here, &mut below);
        below.fill([0.0; 3]);
    }
    indices
}

//! Exact pictures of a clip: PNG files, APNG, and a contact sheet.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Encoder, EncodingError};

use super::{Frame, check_clip, check_fps};
use crate::fs::write_atomically;
use crate::{Error, Result};

/// Writes one frame as an 8-bit RGB PNG.
///
/// # Errors
/// [`Error::Shape`] for an empty frame, [`Error::Io`].
pub fn write_png(path: impl AsRef<Path>, frame: &Frame) -> Result<()> {
    write(path.as_ref(), std::slice::from_ref(frame), None)
}

/// Writes `frame_0000.png`, `frame_0001.png`, ... into `folder`, which is made if need be.
///
/// # Errors
/// [`Error::Shape`] for no frames or frames of several sizes, [`Error::Io`].
pub fn write_png_frames(folder: impl AsRef<Path>, frames: &[Frame]) -> Result<()> {
    let folder = folder.as_ref();
    check_clip("png", frames)?;
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    frames.iter().enumerate().try_for_each(|(i, frame)| write_png(folder.join(format!("frame_{i:04}.png")), frame))
}

/// Writes an APNG that loops for ever: exact, and shown by browsers.
///
/// # Errors
/// [`Error::Shape`] for no frames or frames of several sizes, [`Error::Config`] for a rate out of range, [`Error::Io`].
pub fn write_apng(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    check_fps(fps)?;
    write(path.as_ref(), frames, Some(fps))
}

/// All frames in one picture, row by row in a grid about as wide as it is high, 2 white pixels between them.
///
/// # Errors
/// [`Error::Shape`] for no frames or frames of several sizes.
pub fn contact_sheet(frames: &[Frame]) -> Result<Frame> {
    const GAP: usize = 2;
    let (width, height) = check_clip("contact sheet", frames)?;
    let columns = (frames.len() as f64).sqrt().ceil() as usize;
    let rows = frames.len().div_ceil(columns);
    let mut sheet = Frame::filled(columns * (width + GAP) - GAP, rows * (height + GAP) - GAP, [255; 3]);
    for (i, frame) in frames.iter().enumerate() {
        sheet.paste(frame, i % columns * (width + GAP), i / columns * (height + GAP));
    }
    Ok(sheet)
}

fn write(path: &Path, frames: &[Frame], fps: Option<f64>) -> Result<()> {
    let (width, height) = check_clip("png", frames)?;
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(Error::shape("png", format!("{width}x{height} is more than PNG holds")));
    };
    write_atomically(path, |file| encode(file, frames, [w, h], fps).map_err(as_io))
}

fn encode(file: &mut File, frames: &[Frame], [width, height]: [u32; 2], fps: Option<f64>) -> Result<(), EncodingError> {
    let mut out = BufWriter::new(file);
    let mut encoder = Encoder::new(&mut out, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    if let Some(fps) = fps {
        encoder.set_animated(frames.len() as u32, 0)?;
        let (numerator, denominator) = delay(fps);
        encoder.set_frame_delay(numerator, denominator)?;
    }
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(&frame.pixels)?;
    }
    writer.finish()?;
    Ok(out.flush()?)
}

/// 1 / `fps` seconds as a fraction of 16-bit numbers.
fn delay(fps: f64) -> (u16, u16) {
    // Whole rates, and the broadcast ones over 1001, come out exact.
    let numerator = [1u16, 1001, 100, 10].into_iter().find(|&n| {
        let denominator = fps * n as f64;
        denominator <= u16::MAX as f64 && (denominator - denominator.round()).abs() < 1e-6 * denominator
    });
    let numerator = numerator.unwrap_or(if fps < 65.0 { 1000 } else { 65 });
    (numerator, (fps * numerator as f64).round() as u16)
}

fn as_io(error: EncodingError) -> io::Error {
    match error {
        EncodingError::IoError(e) => e,
        other => io::Error::other(other.to_string()),
    }
}

//! Pictures and video in and out: RGB frames at the size the model works at.
//!
//! Reading: [`load_pictures`] (jpg, png, webp), [`read_clip`] (GIF, APNG, animated WebP, frame folders, mp4/mov with
//! H.264; all else through an `ffmpeg` program). Writing: [`write_mp4`], [`write_gif`], [`write_apng`],
//! [`write_png`], [`write_png_frames`], and [`contact_sheet`] for one picture of a whole clip.
//!
//! Nothing here trusts its input: sizes are bounded before anything is allocated, and a broken file is an error that
//! names it, never a panic.

mod animation;
mod bits;
mod clip;
mod codec;
mod demux;
mod demux_fragment;
mod ffmpeg;
mod frame;
mod gif;
mod h264;
mod mp4;
mod nal;
mod picture;
mod sheet;
mod yuv;

pub use clip::{Clip, ClipOptions, read_clip};
pub use ffmpeg::Ffmpeg;
pub use frame::{Fit, Frame};
pub use gif::write_gif;
pub use mp4::write_mp4;
pub use picture::{load_picture, load_pictures};
pub use sheet::{contact_sheet, write_apng, write_png, write_png_frames};

/// Shortest side of a usable picture, in pixels: one latent cell.
const MIN_SIDE: usize = 8;
/// Longest side, in pixels.
const MAX_SIDE: usize = 8192;
/// Most pixels in one picture (33 M).
const MAX_PIXELS: usize = 33_000_000;
/// Most frames taken from one clip.
const MAX_FRAMES: usize = 4096;
/// Most bytes a picture decoder may hold, and the frames of one clip may take.
const MAX_ALLOCATION: u64 = 1 << 30;

/// Checks that `frames` is a clip: at least one frame, all of one size, each holding what its size says.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for `op`.
fn check_clip(op: &'static str, frames: &[Frame]) -> crate::Result<(usize, usize)> {
    let Some(first) = frames.first() else {
        return Err(crate::Error::shape(op, "no frames"));
    };
    let size = (first.width, first.height);
    for (i, frame) in frames.iter().enumerate() {
        if (frame.width, frame.height) != size || frame.pixels.len() != size.0 * size.1 * 3 || frame.pixels.is_empty() {
            return Err(crate::Error::shape(
                op,
                format!(
                    "frame {i} is {}x{} with {} bytes; frame 0 is {}x{}",
                    frame.width,
                    frame.height,
                    frame.pixels.len(),
                    size.0,
                    size.1
                ),
            ));
        }
    }
    Ok(size)
}

/// A frame rate a file can carry.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) for `--fps`.
fn check_fps(fps: f64) -> crate::Result<()> {
    if (0.1..=1000.0).contains(&fps) {
        return Ok(());
    }
    Err(crate::Error::config("--fps", format!("{fps} is not a frame rate between 0.1 and 1000")))
}

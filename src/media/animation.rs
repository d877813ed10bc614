//! Animated pictures as clips: GIF, APNG and animated WebP, their frames composed as a browser would show them, on
//! white.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, ImageDecoder, ImageResult};

use super::clip::{Clip, ClipOptions, Picker};
use super::picture::{check_size, composite_on_white, limits};
use crate::{Error, Result};

type Source = BufReader<File>;

pub(crate) fn read_gif(path: &Path, options: &ClipOptions) -> Result<Clip> {
    let mut decoder = corrupt(path, GifDecoder::new(open(path)?))?;
    corrupt(path, decoder.set_limits(limits()))?;
    take(path, options, decoder.dimensions(), decoder, "gif", "GIF")
}

pub(crate) fn read_apng(path: &Path, options: &ClipOptions) -> Result<Clip> {
    let decoder = corrupt(path, PngDecoder::with_limits(open(path)?, limits()))?;
    if !corrupt(path, decoder.is_apng())? {
        return Err(still(path));
    }
    let size = decoder.dimensions();
    take(path, options, size, corrupt(path, decoder.apng())?, "apng", "APNG")
}

pub(crate) fn read_webp(path: &Path, options: &ClipOptions) -> Result<Clip> {
    let mut decoder = corrupt(path, WebPDecoder::new(open(path)?))?;
    corrupt(path, decoder.set_limits(limits()))?;
    if !decoder.has_animation() {
        return Err(still(path));
    }
    take(path, options, decoder.dimensions(), decoder, "webp", "WebP")
}

fn take<'a>(
    path: &Path,
    options: &ClipOptions,
    (width, height): (u32, u32),
    decoder: impl AnimationDecoder<'a>,
    backend: &'static str,
    codec: &str,
) -> Result<Clip> {
    /// Most bytes of RGBA decoded on the way to the last frame taken.
    const MAX_DECODED: u64 = 2 << 30;
    /// What browsers show for a frame that claims no time, in seconds.
    const DEFAULT_DELAY: f64 = 0.1;
    check_size(width as usize, height as usize).map_err(|detail| Error::input(path, detail))?;
    let mut picker = Picker::new(options, options.fps);
    let mut frames = Vec::new();
    let (mut shown, mut end, mut decoded) = (0, 0.0, 0);
    let mut at_end = true;
    for frame in decoder.into_frames() {
        let frame = frame.map_err(|e| Error::input(path, format!("frame {shown} cannot be decoded: {e}")))?;
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let delay = numerator as f64 / denominator.max(1) as f64 / 1000.0;
        // Delays up to 10 ms come from programs that meant "as fast as you can".
        end += if delay <= 0.010 { DEFAULT_DELAY } else { delay };
        shown += 1;
        let rgba = frame.into_buffer();
        decoded += rgba.len() as u64;
        let copies = picker.copies(end);
        if copies > 0 {
            let whole = composite_on_white(rgba.width() as usize, rgba.height() as usize, &rgba);
            frames.extend(std::iter::repeat_n(whole.fit(options.width, options.height, options.fit), copies));
        }
        if picker.done() {
            at_end = false;
            break;
        }
        if decoded > MAX_DECODED {
            let detail =
                format!("{shown} frames of {width}x{height} are more than {MAX_DECODED} bytes; cut the clip first");
            return Err(Error::input(path, detail));
        }
    }
    let total = at_end.then(|| picker.counted());
    picker.finish(path, frames, shown as f64 / end.max(1e-3), backend, codec.into(), total)
}

fn open(path: &Path) -> Result<Source> {
    Ok(BufReader::new(File::open(path).map_err(Error::io(path, "open"))?))
}

fn corrupt<T>(path: &Path, result: ImageResult<T>) -> Result<T> {
    result.map_err(|e| Error::input(path, format!("cannot be decoded: {e}")))
}

fn still(path: &Path) -> Error {
    Error::input(path, "is a still picture; a clip is a video or a folder of frames")
}

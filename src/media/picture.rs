//! Pictures of the subject: jpg, jpeg, png and webp files, turned upright, without alpha, at one size.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::{Fit, Frame, MAX_ALLOCATION, MAX_PIXELS, MAX_SIDE, MIN_SIDE};
use crate::{Error, Result};

/// The extensions that make a file a picture, in lower case.
pub(crate) const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Every picture of `folder`, sorted by file name (byte order), at `width` x `height`.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read; [`Error::Input`] if it holds no pictures, or for the first picture
/// that cannot be used (see [`load_picture`]).
pub fn load_pictures(folder: impl AsRef<Path>, width: usize, height: usize, fit: Fit) -> Result<Vec<Frame>> {
    picture_files(folder.as_ref())?.iter().map(|path| load_picture(path, width, height, fit)).collect()
}

/// One picture at `width` x `height`: EXIF orientation applied, alpha composited on white, 16 bits rounded to 8,
/// grey repeated into R, G and B. The content decides the format, not the extension.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Input`] if it is corrupt, of another format, or its size is
/// out of bounds (checked before its pixels are allocated).
pub fn load_picture(path: impl AsRef<Path>, width: usize, height: usize, fit: Fit) -> Result<Frame> {
    Ok(decode(path.as_ref())?.fit(width, height, fit))
}

/// The picture at its own size.
pub(crate) fn decode(path: &Path) -> Result<Frame> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(Error::io(path, "read"))?;
    match reader.format() {
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP) => {}
        Some(other) => {
            let looked_for = EXTENSIONS.join(", ");
            return Err(Error::input(path, format!("is a {other:?} file; pictures are {looked_for}")));
        }
        None => return Err(Error::input(path, "is not a picture: its first bytes are of no known format")),
    }
    reader.limits(limits());
    decode_with(reader).map_err(|detail| Error::input(path, detail))
}

fn decode_with(reader: ImageReader<impl BufRead + Seek>) -> Result<Frame, String> {
    let corrupt = |e: image::ImageError| format!("cannot be decoded: {e}");
    let mut decoder = reader.into_decoder().map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let orientation = decoder.orientation().map_err(corrupt)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    picture.apply_orientation(orientation);
    Ok(on_white(picture))
}

/// RGB of `picture`, what is transparent showing white.
fn on_white(picture: DynamicImage) -> Frame {
    if !picture.color().has_alpha() {
        let rgb = picture.into_rgb8();
        return Frame { width: rgb.width() as usize, height: rgb.height() as usize, pixels: rgb.into_raw() };
    }
    let rgba = picture.into_rgba8();
    composite_on_white(rgba.width() as usize, rgba.height() as usize, rgba.as_raw())
}

/// RGB of `rgba` (height, width, 4) over white: c' = c a + 255 (1 - a), rounded.
pub(crate) fn composite_on_white(width: usize, height: usize, rgba: &[u8]) -> Frame {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for &[r, g, b, a] in rgba.as_chunks::<4>().0 {
        let a = a as u32;
        pixels.extend([r, g, b].map(|c| ((c as u32 * a + 255 * (255 - a) + 127) / 255) as u8));
    }
    Frame { width, height, pixels }
}

/// Bounds on a decoded picture or frame, as the reason why it is refused.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width < MIN_SIDE || height < MIN_SIDE {
        return Err(format!("{width}x{height} pixels is too small: each side needs at least {MIN_SIDE}"));
    }
    if width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(format!(
            "{width}x{height} pixels is too large: at most {MAX_SIDE} a side and {MAX_PIXELS} in all; scale it down first"
        ));
    }
    Ok(())
}

/// The same bounds for the decoders of `image`, which see the header before this crate does.
pub(crate) fn limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MAX_ALLOCATION);
    limits
}

/// The pictures of a folder, sorted by file name.
pub(crate) fn picture_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // Hidden files are the file manager's (`._01.jpg`), not the user's.
        if EXTENSIONS.contains(&extension.as_str()) && !name.starts_with('.') && !path.is_dir() {
            pictures.push(path);
        } else {
            others.push(name);
        }
    }
    if pictures.is_empty() {
        others.sort();
        let found =
            if others.is_empty() { "is empty".into() } else { format!("holds {}", crate::error::abridged(&others)) };
        return Err(Error::input(
            folder,
            format!("no pictures: looked for {}; the folder {found}", EXTENSIONS.join(", ")),
        ));
    }
    pictures.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(pictures)
}

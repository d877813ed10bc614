//! Reading the frames of a clip, whatever it is stored as, and choosing among them.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Ffmpeg, Fit, Frame, MAX_ALLOCATION, MAX_FRAMES, animation, check_fps, ffmpeg, h264, picture};
use crate::{Error, Result};

/// Which frames of a clip to take, and at which size.
#[derive(Clone, Debug)]
pub struct ClipOptions {
    /// Frames to take.
    pub frames: usize,
    /// The first frame taken, counted from 0.
    pub start: usize,
    /// From one frame taken to the next.
    pub step: usize,
    /// Resample to this rate (frames per second) first, repeating or leaving out frames; `start` and `step` then
    /// count resampled frames. `None`: the frames as they are stored.
    pub fps: Option<f64>,
    /// Width of the frames returned, in pixels.
    pub width: usize,
    /// Height of the frames returned, in pixels.
    pub height: usize,
    /// How frames of another aspect ratio are brought to that size.
    pub fit: Fit,
    /// The program for what the built-in readers cannot read.
    pub ffmpeg: Ffmpeg,
}

impl Default for ClipOptions {
    /// The first 16 frames at 256x256.
    fn default() -> Self {
        ClipOptions {
            frames: 16,
            start: 0,
            step: 1,
            fps: None,
            width: 256,
            height: 256,
            fit: Fit::Crop,
            ffmpeg: Ffmpeg::OnPath,
        }
    }
}

/// The frames taken from a clip.
#[derive(Clone, Debug)]
pub struct Clip {
    /// As many as asked for, all at the size asked for.
    pub frames: Vec<Frame>,
    /// Rate of the frames that `start` and `step` count, per second: the clip's mean rate, or the one resampled to.
    /// The frames taken follow each other at fps / step.
    pub fps: f64,
    /// What read it: `folder`, `gif`, `apng`, `webp`, `h264` or `ffmpeg`.
    pub backend: &'static str,
    /// The codec as a person would name it, with its profile if it has one.
    pub codec: String,
    /// Frames in the whole clip (after resampling), where the reader got to see its end.
    pub total_frames: Option<usize>,
}

/// Reads the clip at `path`: a folder of pictures (in the order of their names, numbers by value), GIF, APNG,
/// animated WebP, or mp4/mov with 8-bit 4:2:0 progressive H.264 by built-in readers; anything else, and what these
/// refuse, by an `ffmpeg` program. Rotation, colour matrix and range, cropping and edit lists of a video are honoured.
///
/// # Errors
/// [`Error::Config`] for options out of range, [`Error::Io`] for a file that cannot be read, [`Error::Input`] for a
/// clip that is too short (with the flags that would make it do), corrupt, or in need of an `ffmpeg` that is not there
/// (with the command that converts it).
pub fn read_clip(path: impl AsRef<Path>, options: &ClipOptions) -> Result<Clip> {
    let path = path.as_ref();
    check(options)?;
    let about = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if about.is_dir() {
        return read_folder(path, options);
    }
    if !about.is_file() {
        return Err(Error::input(path, "is neither a file nor a folder"));
    }
    /// What an mp4 or mov file can begin with.
    const FIRST_BOXES: [&[u8]; 7] = [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"];
    let mut head = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    file.take(16).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
    let refusal = match head.as_slice() {
        [] => return Err(Error::input(path, "is empty")),
        [b'G', b'I', b'F', ..] => return animation::read_gif(path, options),
        [0x89, b'P', b'N', b'G', ..] => return animation::read_apng(path, options),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            return animation::read_webp(path, options);
        }
        [0xff, 0xd8, 0xff, ..] => {
            return Err(Error::input(path, "is a still picture; a clip is a video or a folder of frames"));
        }
        [_, _, _, _, name @ ..] if FIRST_BOXES.iter().any(|first| name.starts_with(first)) => {
            match h264::read(path, options)? {
                Ok(clip) => return Ok(clip),
                Err(refusal) => refusal,
            }
        }
        _ => Refusal { codec: "unknown container".into(), reason: "neither mp4/mov, GIF, APNG nor WebP".into() },
    };
    match options.ffmpeg.program()? {
        Some(program) => ffmpeg::read(&program, path, options, &refusal),
        None => Err(Error::input(path, refusal.without_ffmpeg(path))),
    }
}

/// Why the built-in video reader does not read a file, and what is in it as far as known.
pub(crate) struct Refusal {
    pub codec: String,
    pub reason: String,
}

impl Refusal {
    fn without_ffmpeg(&self, path: &Path) -> String {
        let quoted = |p: &Path| format!("'{}'", p.to_string_lossy().replace('\'', r"'\''"));
        let target =
            path.with_file_name(format!("{}-h264.mp4", path.file_stem().unwrap_or_default().to_string_lossy()));
        format!(
            "{}: {}. Without ffmpeg only 8-bit 4:2:0 progressive H.264 in mp4/mov can be read: install ffmpeg, or convert \
             the clip where it is installed with: ffmpeg -i {} -an -c:v libx264 -crf 12 -pix_fmt yuv420p {}",
            self.codec,
            self.reason,
            quoted(path),
            quoted(&target)
        )
    }
}

fn check(options: &ClipOptions) -> Result<()> {
    let at_least = |key: &str, value: usize, least: usize, most: usize| {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(Error::config(key, format!("{value} is not between {least} and {most}")))
    };
    at_least("--frames", options.frames, 1, MAX_FRAMES)?;
    at_least("--frame-start", options.start, 0, u32::MAX as usize)?;
    at_least("--frame-step", options.step, 1, u32::MAX as usize)?;
    at_least("--width", options.width, super::MIN_SIDE, super::MAX_SIDE)?;
    at_least("--height", options.height, super::MIN_SIDE, super::MAX_SIDE)?;
    let bytes = options.frames as u64 * (options.width * options.height * 3) as u64;
    if bytes > MAX_ALLOCATION {
        let size = format!("{} frames of {}x{}", options.frames, options.width, options.height);
        return Err(Error::config("--frames", format!("{size} are {bytes} bytes; at most {MAX_ALLOCATION} fit")));
    }
    options.fps.map_or(Ok(()), check_fps)
}

fn read_folder(folder: &Path, options: &ClipOptions) -> Result<Clip> {
    /// A folder has no timing of its own; this is the rate of the clips the motion module was trained on.
    const FOLDER_FPS: f64 = 8.0;
    let mut files = picture::picture_files(folder)?;
    files.sort_by(|a, b| by_number(&a.to_string_lossy(), &b.to_string_lossy()));
    let mut picker = Picker::new(options, None);
    let mut frames = Vec::with_capacity(options.frames);
    for file in &files {
        if picker.copies(0.0) > 0 {
            frames.push(picture::load_picture(file, options.width, options.height, options.fit)?);
        }
    }
    let fps = options.fps.unwrap_or(FOLDER_FPS);
    picker.finish(folder, frames, fps, "folder", "pictures".into(), Some(files.len()))
}

/// File names in the order a person counts: runs of digits by value, all else by character.
fn by_number(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    loop {
        let (n, m) = (digits(x), digits(y));
        let order = if n > 0 && m > 0 {
            let [left, right] = [&x[..n], &y[..m]].map(|d| d.trim_ascii_start());
            let zeros = |d: &[u8]| d.iter().take_while(|&&c| c == b'0').count();
            let (left, right) = (&left[zeros(left)..], &right[zeros(right)..]);
            (x, y) = (&x[n..], &y[m..]);
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            match (x.split_first(), y.split_first()) {
                (Some((c, rest)), Some((d, others))) => {
                    (x, y) = (rest, others);
                    c.cmp(d)
                }
                // One is the start of the other, or they differ in leading zeros only.
                _ => return x.len().cmp(&y.len()).then_with(|| a.cmp(b)),
            }
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Chooses frames as they come in display order.
pub(crate) struct Picker<'a> {
    options: &'a ClipOptions,
    fps: Option<f64>,
    /// Frames counted so far: those stored, or those after resampling.
    counted: usize,
    taken: usize,
}

impl<'a> Picker<'a> {
    /// `fps`: resample to it by the end times given to [`copies`](Self::copies).
    pub fn new(options: &'a ClipOptions, fps: Option<f64>) -> Self {
        Picker { options, fps, counted: 0, taken: 0 }
    }

    /// How often the next frame is taken. It is shown until `end`, in seconds after the first frame appeared.
    ///
    /// Resampled frame k is the last one whose time, rounded to the nearest 1/fps, is not after k/fps: the rule of
    /// ffmpeg's `fps` filter, so that both readers take the same frames.
    pub fn copies(&mut self, end: f64) -> usize {
        /// Halves must round up although most times have no exact f64.
        const TIE: f64 = 1e-6;
        self.counted = match self.fps {
            None => self.counted + 1,
            Some(fps) => self.counted.max((end * fps + TIE).round().clamp(0.0, u32::MAX as f64) as usize),
        };
        let before = self.taken;
        while !self.done() && self.options.start + self.taken * self.options.step < self.counted {
            self.taken += 1;
        }
        self.taken - before
    }

    /// Whether all frames asked for have been taken.
    pub fn done(&self) -> bool {
        self.taken == self.options.frames
    }

    /// Frames counted so far.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// The clip, or why it is too short.
    pub fn finish(
        &self,
        path: &Path,
        frames: Vec<Frame>,
        fps: f64,
        backend: &'static str,
        codec: String,
        total_frames: Option<usize>,
    ) -> Result<Clip> {
        if frames.len() == self.options.frames {
            return Ok(Clip { frames, fps: self.options.fps.unwrap_or(fps), backend, codec, total_frames });
        }
        Err(Error::input(path, too_short(self.options, self.counted)))
    }
}

fn too_short(options: &ClipOptions, found: usize) -> String {
    let ClipOptions { frames, start, step, fps, .. } = *options;
    let needed = start + (frames - 1) * step + 1;
    let at = fps.map_or(String::new(), |fps| format!(" at {fps} fps"));
    let mut text = format!(
        "the clip has {found} frames{at}, but --frame-start {start} --frame-step {step} --frames {frames} need {needed}"
    );
    let mut ways = Vec::new();
    if found > start + frames - 1 && step > 1 {
        ways.push(format!("--frame-step {}", if frames > 1 { (found - 1 - start) / (frames - 1) } else { 1 }));
    }
    if start > 0 && found > (frames - 1) * step {
        ways.push(format!("--frame-start {}", found - 1 - (frames - 1) * step));
    }
    if found > start {
        ways.push(format!("--frames {}", (found - 1 - start) / step + 1));
    }
    if ways.is_empty() {
        text += "; use a longer clip";
    } else {
        text += &format!("; it would do with {}", ways.join(" or "));
    }
    text
}

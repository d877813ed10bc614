//! Clips read by an `ffmpeg` program: a child process without a shell, held to files, to known containers and to a
//! time, whose pictures come through a pipe.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Frame;
use super::clip::{Clip, ClipOptions, Picker, Refusal};
use super::picture::check_size;
use crate::{Error, Result};

/// Which `ffmpeg` may be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ffmpeg {
    /// The one on `PATH`, if there is one.
    #[default]
    OnPath,
    /// This program.
    At(PathBuf),
    /// None.
    Never,
}

impl Ffmpeg {
    /// # Errors
    /// [`Error::Config`] for a program that does not exist.
    pub(crate) fn program(&self) -> Result<Option<PathBuf>> {
        match self {
            Ffmpeg::Never => Ok(None),
            Ffmpeg::At(path) if path.is_file() => Ok(Some(path.clone())),
            Ffmpeg::At(path) => Err(Error::config("--ffmpeg", format!("{} is not a program", path.display()))),
            Ffmpeg::OnPath => {
                let name = format!("ffmpeg{}", env::consts::EXE_SUFFIX);
                let folders = env::var_os("PATH").unwrap_or_default();
                Ok(env::split_paths(&folders).map(|folder| folder.join(&name)).find(|program| program.is_file()))
            }
        }
    }
}

/// Longest a clip may take.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of pictures read from the pipe.
const MAX_OUTPUT: usize = 2 << 30;
/// What ffmpeg itself takes for a stream that does not tell its rate.
const ASSUMED_FPS: f64 = 25.0;
/// What `ffmpeg` may open: containers of one file. No playlists, which could name other files.
const CONTAINERS: &str = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,h264,hevc,obu,m4v,yuv4mpegpipe,nut,mjpeg,gif,apng,mxf,dv,rm,wtv,av1";

/// Reads the clip that the built-in reader refused.
///
/// # Errors
/// [`Error::Input`] if ffmpeg cannot read it either, for a clip that is too short, or past the limits; [`Error::Io`] if
/// the program cannot be started.
pub(crate) fn read(program: &Path, path: &Path, options: &ClipOptions, refusal: &Refusal) -> Result<Clip> {
    let whole = path.canonicalize().map_err(Error::io(path, "open"))?;
    let mut child = command(program, &whole, options).spawn().map_err(Error::io(program, "start"))?;
    let (Some(pictures), Some(messages)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::input(path, "ffmpeg gave no output"));
    };
    let child = Killed(child);
    let log = thread::spawn(move || Log::read(messages));
    let (sender, frames) = sync_channel(2);
    // Ends when the pipe does, or when nobody listens.
    thread::spawn(move || send_pictures(pictures, &sender));
    let outcome = collect(&frames, options);
    drop(frames);
    drop(child);
    let log = log.join().unwrap_or_default();
    let (taken, picker, at_end) = match outcome {
        Ok(outcome) => outcome,
        Err(detail) => return Err(Error::input(path, format!("{}: ffmpeg: {detail}", refusal.codec))),
    };
    if picker.counted() == 0 {
        let Refusal { codec, reason } = refusal;
        let said = log.last.into_iter().collect::<Vec<_>>().join("; ");
        return Err(Error::input(path, format!("{codec}: {reason}; ffmpeg cannot read it either: {said}")));
    }
    let total = at_end.then(|| picker.counted());
    let codec = log.codec.unwrap_or_else(|| refusal.codec.clone());
    picker.finish(path, taken, log.fps.unwrap_or(ASSUMED_FPS), "ffmpeg", codec, total)
}

fn command(program: &Path, whole: &Path, options: &ClipOptions) -> Command {
    // `file:` keeps a name with a colon or a leading dash a name.
    let mut input = OsString::from("file:");
    input.push(whole);
    // The pipe's muxer repeats and drops frames to keep a constant rate. Frames restamped at that rate stay as they are.
    let (rate, filter) = match options.fps {
        Some(fps) => (fps, format!("setpts=PTS-STARTPTS,fps=fps={fps}:round=near")),
        None => (25.0, "settb=expr=1/25,setpts=N".into()),
    };
    let mut command = Command::new(program);
    command
        .args(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "info"])
        .args(["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS])
        .arg("-i")
        .arg(input)
        .args(["-map", "0:v:0", "-an", "-sn", "-dn", "-vf", &filter, "-r", &rate.to_string()])
        .args(["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A process that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only for a process that has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The frames asked for, the picker that chose them, and whether the clip's end was seen.
fn collect<'a>(
    pictures: &Receiver<Result<Frame, String>>,
    options: &'a ClipOptions,
) -> Result<(Vec<Frame>, Picker<'a>, bool), String> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut picker = Picker::new(options, None);
    let mut taken = Vec::new();
    let mut bytes = 0;
    loop {
        let frame = match pictures.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(frame) => frame?,
            Err(RecvTimeoutError::Disconnected) => return Ok((taken, picker, true)),
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("took more than {} s; cut the clip first", TIME_LIMIT.as_secs()));
            }
        };
        bytes += frame.pixels.len();
        let copies = picker.copies(0.0);
        if copies > 0 {
            taken.extend(std::iter::repeat_n(frame.fit(options.width, options.height, options.fit), copies));
        }
        if picker.done() {
            return Ok((taken, picker, false));
        }
        if bytes > MAX_OUTPUT {
            return Err(format!("more than {MAX_OUTPUT} bytes before the last frame asked for; cut the clip first"));
        }
    }
}

fn send_pictures(pipe: impl Read, to: &SyncSender<Result<Frame, String>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let next = match read_picture(&mut pipe) {
            Ok(None) => return,
            Ok(Some(frame)) => Ok(frame),
            Err(detail) => Err(detail),
        };
        let last = next.is_err();
        if to.send(next).is_err() || last {
            return;
        }
    }
}

/// One binary PPM of 8 bits: raw rgb24 that says its own size, which rotation may have swapped. `None` at the end.
fn read_picture(pipe: &mut impl BufRead) -> Result<Option<Frame>, String> {
    let broken = |_| "the pictures broke off".to_string();
    let mut header = String::new();
    for line in ["P6", "width and height", "255"] {
        let before = header.len();
        pipe.take(32).read_line(&mut header).map_err(broken)?;
        if header.is_empty() {
            return Ok(None);
        }
        if !header[before..].ends_with('\n') {
            return Err(format!("a picture without {line}"));
        }
    }
    let fields: Vec<&str> = header.split_ascii_whitespace().collect();
    let &["P6", width, height, "255"] = fields.as_slice() else {
        return Err(format!("pictures of another kind: {header:?}"));
    };
    let (Ok(width), Ok(height)) = (width.parse(), height.parse()) else {
        return Err(format!("pictures of no size: {header:?}"));
    };
    check_size(width, height)?;
    let mut pixels = vec![0; width * height * 3];
    pipe.read_exact(&mut pixels).map_err(broken)?;
    Ok(Some(Frame { width, height, pixels }))
}

/// What ffmpeg says about its input.
#[derive(Default)]
struct Log {
    codec: Option<String>,
    fps: Option<f64>,
    /// The last lines, for when it fails.
    last: VecDeque<String>,
}

impl Log {
    fn read(messages: impl Read) -> Self {
        /// Longest line kept, in bytes.
        const LINE: u64 = 1000;
        let mut log = Log::default();
        let mut messages = BufReader::new(messages);
        loop {
            let mut line = Vec::new();
            match messages.by_ref().take(LINE).read_until(b'\n', &mut line) {
                Ok(1..) => log.add(String::from_utf8_lossy(&line).trim()),
                _ => return log,
            }
        }
    }

    fn add(&mut self, line: &str) {
        // The first stream described is the input's: "Stream #0:0(und): Video: hevc (Main) (hvc1 / 0x..), yuv420p, ..., 25 fps"
        if let Some((_, about)) = line.split_once(": Video: ")
            && self.codec.is_none()
        {
            let name = about.split(", ").next().unwrap_or(about);
            // Without the container's own code for it, "(mp4v / 0x7634706D)".
            let code = name.find(" / 0x").and_then(|slash| name[..slash].rfind(" ("));
            self.codec = Some(name[..code.unwrap_or(name.len())].to_string());
            let rate =
                |unit: &str| about.split(", ").find_map(|part| part.trim().strip_suffix(unit)?.trim().parse().ok());
            self.fps = rate("fps").or_else(|| rate("tbr"));
        }
        if self.last.len() == 3 {
            self.last.pop_front();
        }
        self.last.push_back(line.to_string());
    }
}

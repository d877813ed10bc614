//! The program itself: what it says, what it leaves behind and how it ends.

mod forward;
mod jobs;
mod mistakes;
mod readme;
mod replay;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use customttt::data::{NamedTensors, TensorWriter};
use customttt::media::{Frame, write_png, write_png_frames};
use serde_json::Value as Json;

/// The program, away from whatever the environment says.
fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_customttt"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CUSTOMTTT_") {
            command.env_remove(name);
        }
    }
    command.args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    program(words).output().expect("the program should start")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the program, which must succeed; gives its stdout.
fn succeed(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?} ended with {:?}:\n{}", output.status.code(), err(&output));
    out(&output)
}

/// Runs the program, which must fail with `code`, in words that hold all of `says`; nothing may be on stdout.
fn fail(words: &[&str], code: i32, says: &[&str]) -> String {
    let output = run(words);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(code), "{words:?}:\n{text}");
    says.iter().for_each(|s| assert!(text.contains(s), "{words:?} should say {s:?}:\n{text}"));
    assert_eq!(out(&output), "", "a failure should leave stdout empty");
    assert!(!text.contains("panicked") && !text.contains("internal error"), "{text}");
    text
}

fn json(words: &[&str]) -> Json {
    serde_json::from_str(&succeed(words)).expect("stdout should be one JSON object")
}

/// Random weights of the smallest size, made once.
fn weights() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-weights");
        succeed(&["init-weights", "--size", "tiny", "--seed", "3", &path.to_string_lossy()]);
        path
    })
}

fn base() -> String {
    weights().join("base").to_string_lossy().into_owned()
}

fn motion() -> String {
    weights().join("motion").to_string_lossy().into_owned()
}

/// A folder of its own for a test.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().expect("a temporary folder should be possible"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn text(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("the folder should be writable");
        path
    }

    /// A folder of `count` pictures that differ.
    fn pictures(&self, name: &str, count: usize) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("the folder should be writable");
        (0..count).for_each(|i| write_png(Path::new(&path).join(format!("{i}.png")), &picture(i)).expect("written"));
        path
    }

    /// A folder of frames: a clip.
    fn clip(&self, name: &str, count: usize) -> String {
        let path = self.path(name);
        write_png_frames(&path, &(0..count).map(picture).collect::<Vec<_>>()).expect("written");
        path
    }
}

fn picture(i: usize) -> Frame {
    let pixels = (0..72 * 64 * 3).map(|p| ((p * 7 + i * 50 + p / 64) % 256) as u8).collect();
    Frame { width: 72, height: 64, pixels }
}

/// Numbers that look random and are the same everywhere.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 3.4 - 1.7
    };
    (0..count).map(|_| next()).collect()
}

fn write(path: &str, tensors: &[(&str, &[usize], Vec<f32>)]) {
    let mut file = TensorWriter::new();
    for (name, shape, numbers) in tensors {
        file.floats(*name, *shape, numbers.clone());
    }
    file.write(path).expect("the file should be writable");
}

fn read(path: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = NamedTensors::open(path).expect("the file should be readable");
    let (shape, numbers) = file.floats(name).expect("the tensor should be readable").expect("it should be there");
    (shape.to_vec(), numbers)
}

fn same_file(a: impl AsRef<Path>, b: impl AsRef<Path>) {
    let (a, b) = (a.as_ref(), b.as_ref());
    let bytes = |p: &Path| fs::read(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
    assert!(bytes(a) == bytes(b), "{} and {} should be the same", a.display(), b.display());
}

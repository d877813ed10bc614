//! The folder of a run: its layout, its lock, and what is written into it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::clock;
use super::config::Config;
use super::config_file;
use crate::fs::write_atomically;
use crate::{Error, Result};

/// A run folder that this process holds: nobody else can write to it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder for a new run and takes its lock.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written to, is in use (naming the holder), or holds a run already.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io(path, "create the run folder"))?;
        let folder = Self::lock(path)?;
        if folder.config_path().exists() {
            let way_out = if folder.is_done() { "" } else { " (finish it with `customttt resume`)" };
            let detail = format!("it holds a run already{way_out}; choose another with -o");
            let source = io::Error::new(io::ErrorKind::AlreadyExists, detail);
            return Err(Error::Io { path: path.into(), verb: "write to the run folder", source });
        }
        Ok(folder)
    }

    /// Takes the lock of an existing run's folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it is no run folder, or in use.
    pub fn open(path: &Path) -> Result<Self> {
        let config = path.join("config.toml");
        fs::metadata(&config).map_err(Error::io(&config, "open the run"))?;
        Self::lock(path)
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(".lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(Error::io(path, "write to the run folder"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let detail = format!("it is in use by {}", holder.trim());
                let source = io::Error::new(io::ErrorKind::ResourceBusy, detail);
                return Err(Error::Io { path: path.into(), verb: "lock the run folder", source });
            }
            Err(TryLockError::Error(source)) => {
                return Err(Error::Io { path: path.into(), verb: "lock the run folder", source });
            }
        }
        let holder = format!("process {}, started {}\n", std::process::id(), clock::now());
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| lock.write_all(holder.as_bytes()))
            .map_err(Error::io(&file, "write"))?;
        Ok(RunFolder { path: path.into(), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`: the resolved settings.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `run.json`: what ran, on what.
    pub fn record_path(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// `loras/NAME.safetensors`.
    pub fn lora(&self, name: &str) -> PathBuf {
        self.path.join("loras").join(format!("{name}.safetensors"))
    }

    /// `checkpoints/NAME.safetensors`.
    pub fn checkpoint(&self, name: &str) -> PathBuf {
        self.path.join("checkpoints").join(format!("{name}.safetensors"))
    }

    /// `samples/NAME`.
    pub fn sample(&self, name: &str) -> PathBuf {
        self.path.join("samples").join(name)
    }

    /// `data/NAME`: inputs as trained on.
    pub fn data(&self, name: &str) -> PathBuf {
        self.path.join("data").join(name)
    }

    /// True once the run has finished.
    pub fn is_done(&self) -> bool {
        self.path.join("DONE").exists()
    }

    /// Marks the run finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mark_done(&self) -> Result<()> {
        write_text(&self.path.join("DONE"), &format!("{}\n", clock::now()))
    }

    /// Writes the resolved settings.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_config(&self, config: &Config) -> Result<()> {
        write_text(&self.config_path(), &config_file::render(config))
    }

    /// What `run.json` will say: program, command line, seed and device; the hash of every input comes later.
    pub fn record(&self, task: &str, config: &Config, device: &str) -> Record {
        let fields = json!({
            "schema": 1,
            "command": task,
            "argv": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
            "started": clock::now(),
            "seed": config.seed(),
            "device": device,
            "versions": super::info::versions(),
        });
        Record { path: self.record_path(), fields }
    }

    /// The command that made this run.
    ///
    /// # Errors
    /// [`Error::Io`] if `run.json` cannot be read, [`Error::Config`] if it is not one.
    pub fn recorded_command(&self) -> Result<String> {
        let path = self.record_path();
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let record: Json = serde_json::from_str(&text)
            .map_err(|e| Error::config(path.display().to_string(), format!("is not a run record: {e}")))?;
        let command = record.get("command").and_then(Json::as_str);
        command
            .map(String::from)
            .ok_or_else(|| Error::config(path.display().to_string(), "is not a run record: no \"command\""))
    }
}

/// The contents of `run.json`.
pub struct Record {
    path: PathBuf,
    fields: Json,
}

impl Record {
    /// Writes the file, with the hashes of the files that `inputs` are or hold.
    ///
    /// # Errors
    /// [`Error::Io`] for an input that cannot be read, or the file itself.
    pub fn write(&self, inputs: Option<&[PathBuf]>) -> Result<()> {
        let mut fields = self.fields.clone();
        if let Some(inputs) = inputs {
            let mut hashes = serde_json::Map::new();
            for input in inputs {
                for file in files_of(input)? {
                    hashes.insert(file.display().to_string(), sha256(&file)?.into());
                }
            }
            fields["inputs_sha256"] = hashes.into();
        }
        let text = serde_json::to_string_pretty(&fields).expect("strings and numbers should serialise");
        write_text(&self.path, &(text + "\n"))
    }
}

/// A name for a run nobody named: `runs/20260101-120000_run_3f2a`.
pub fn default_path(task: &str) -> PathBuf {
    let stamp: String = clock::now().chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(15).collect();
    let id = std::process::id() & 0xffff;
    Path::new("runs").join(format!("{}_{}_{id:04x}", stamp.replace('T', "-"), task.replace(' ', "-")))
}

/// A file name made of a prompt.
pub fn slug(prompt: &str) -> String {
    const LONGEST: usize = 48;
    let letter = |c: char| if c.is_alphanumeric() { c.to_lowercase().next().unwrap_or(c) } else { '-' };
    let dashed: String = prompt.chars().map(letter).collect();
    let words: Vec<&str> = dashed.split('-').filter(|w| !w.is_empty()).collect();
    let slug: String = words.join("-").chars().take(LONGEST).collect();
    if slug.is_empty() { "empty".into() } else { slug.trim_end_matches('-').into() }
}

/// Makes the folder of an output file, and checks that it can be written to, before the work that fills it begins.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn prepare_output(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    if path.is_dir() {
        let source = io::Error::new(io::ErrorKind::IsADirectory, "it is a folder");
        return Err(Error::Io { path: path.into(), verb: "write", source });
    }
    let probe = folder.join(format!(".customttt-{}.tmp", std::process::id()));
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(Error::io(folder, "write to the folder"))
}

/// Writes a text file atomically; its folder is made if need be.
///
/// # Errors
/// [`Error::Io`].
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    }
    write_atomically(path, |file| file.write_all(text.as_bytes()))
}

/// The file, or every file of the folder and the folders in it but hidden ones, in the order of their names.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let about = fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !about.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path, "read"))? {
        let entry = entry.map_err(Error::io(path, "read"))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            entries.push(entry.path());
        }
    }
    entries.sort();
    for entry in entries {
        files.extend(files_of(&entry)?);
    }
    Ok(files)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::create(dir.path()).unwrap();
        let error = RunFolder::create(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 9);
        assert!(error.to_string().contains(&format!("process {}, started 20", std::process::id())), "{error}");
        drop(first);
        RunFolder::create(dir.path()).unwrap();
    }

    #[test]
    fn slugs_are_file_names() {
        assert_eq!(slug("A teddy bear, on the snow!"), "a-teddy-bear-on-the-snow");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("***"), "empty");
        assert_eq!(slug(&"x".repeat(300)).len(), 48);
    }

    #[test]
    fn hashes_are_those_of_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert!(sha256(&path).unwrap().starts_with("ba7816bf8f01cfea414140de5dae2223"));
        assert_eq!(files_of(dir.path()).unwrap(), [path]);
    }
}

//! Writing files so that a crash or a full disk never leaves half a file under its final name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes `path` through `fill`: into a new file beside it, flushed to the disk and then renamed over it, so that
/// `path` always holds either its old content or all of the new one. The directory must exist.
///
/// # Errors
/// [`Error::Io`] naming `path`; the unfinished file is removed.
pub(crate) fn write_atomically(path: impl AsRef<Path>, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let (mut file, beside) = create_beside(path).map_err(Error::io(path, "create"))?;
    let written = fill(&mut file).and_then(|()| file.sync_all());
    drop(file);
    let renamed = written.map_err(Error::io(path, "write"));
    let renamed = renamed.and_then(|()| fs::rename(&beside, path).map_err(Error::io(path, "rename")));
    if renamed.is_err() {
        // The first failure is the one worth reporting.
        let _ = fs::remove_file(&beside);
        return renamed;
    }
    sync_directory(directory_of(path)).map_err(Error::io(path, "flush the directory of"))
}

/// A new hidden file in the directory of `path`. A plain create, unlike most temporary-file helpers, so that the
/// file's permissions follow the umask.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file name"));
    };
    loop {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let beside = directory_of(path).join(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename durable. Only Unix lets a directory be opened for this.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn writes_replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomically(&path, |f| f.write_all(b"one")).unwrap();
        write_atomically(&path, |f| f.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");

        let failed = write_atomically(&path, |f| {
            f.write_all(b"thr")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("a.bin"));
        assert_eq!(fs::read(&path).unwrap(), b"two", "a failed write must keep the old file");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file may stay");
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a.bin");
        let error = write_atomically(&path, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("missing"), "{error}");
    }
}

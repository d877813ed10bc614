//! The safetensors format: eight bytes of header length, a JSON header, and the numbers.

mod header;
mod scan;
mod write;

pub use header::{Entry, Header, Stored};
pub use write::{NewTensor, write, write_streamed};

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use memmap2::{Advice, Mmap};

use crate::{Error, HostData, Result};

/// A safetensors file in memory, mapped.
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl TensorFile {
    /// Maps a file and checks its header: every byte belongs to exactly one tensor, and every tensor's bytes fit
    /// its shape and type.
    ///
    /// # Errors
    /// [`Error::Model`] for anything but a well-formed file, saying what it is instead where that can be told;
    /// [`Error::Io`] if it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let about = file.metadata().map_err(Error::io(path, "read"))?;
        if !about.is_file() {
            return Err(Error::model(path, "is not a regular file"));
        }
        if about.len() < 8 {
            return Err(Error::model(path, format!("{} bytes are too few for a safetensors file", about.len())));
        }
        // SAFETY: the mapping is read-only; files are replaced by renaming here, never written in place, so its
        // bytes change only if another program truncates or overwrites the file during the load.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        let header = Header::parse(&map).map_err(|detail| Error::model(path, detail))?;
        // A hint: loading works without it.
        let _ = map.advise(Advice::WillNeed);
        Ok(TensorFile { path: path.into(), map, header })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names, types, shapes and metadata.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The stored bytes of a tensor.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map[entry.range.clone()]
    }

    /// The numbers of a tensor: f32 and f16 as they are, borrowed where the file aligns them; f64 and bf16 as f32.
    ///
    /// # Errors
    /// [`Error::Model`] for integers.
    pub fn numbers(&self, entry: &Entry) -> Result<HostData<'_>> {
        let bytes = self.bytes(entry);
        Ok(match entry.stored {
            Stored::F32 => HostData::F32(cast(bytes)),
            Stored::F16 => HostData::F16(cast(bytes)),
            Stored::Bf16 => cast::<half::bf16>(bytes).to_f32_vec().into(),
            Stored::F64 => cast::<f64>(bytes).iter().map(|&x| x as f32).collect::<Vec<_>>().into(),
            other => return Err(Error::model(&self.path, format!("{} holds {other}, not numbers", entry.name))),
        })
    }

    /// A tensor of any integer type, as i64.
    ///
    /// # Errors
    /// [`Error::Model`] for floating-point numbers, and for what i64 cannot hold.
    pub fn integers(&self, entry: &Entry) -> Result<Vec<i64>> {
        let bytes = self.bytes(entry);
        fn wide<T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<i64>>(bytes: &[u8]) -> Vec<i64> {
            cast::<T>(bytes).iter().map(|&x| x.into()).collect()
        }
        let refuse = |detail: &str| Error::model(&self.path, format!("{} {detail}", entry.name));
        Ok(match entry.stored {
            Stored::Bool | Stored::U8 => wide::<u8>(bytes),
            Stored::I8 => wide::<i8>(bytes),
            Stored::I16 => wide::<i16>(bytes),
            Stored::U16 => wide::<u16>(bytes),
            Stored::I32 => wide::<i32>(bytes),
            Stored::U32 => wide::<u32>(bytes),
            Stored::I64 => wide::<i64>(bytes),
            Stored::U64 => {
                let whole = cast::<u64>(bytes).iter().map(|&x| i64::try_from(x)).collect::<Result<_, _>>();
                whole.map_err(|_| refuse("holds integers beyond 64 bits with sign"))?
            }
            other => return Err(refuse(&format!("holds {other}, not integers"))),
        })
    }
}

/// Bytes as numbers: in place where their address allows it, else copied.
fn cast<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}

/// Index and count of the numbers that are not finite, if any.
pub fn non_finite(data: &HostData) -> Option<(usize, usize)> {
    scan::non_finite(data)
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "TensorFile({}, {} tensors)", self.path.display(), self.header.entries().len())
    }
}

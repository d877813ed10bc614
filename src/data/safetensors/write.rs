//! Writing: the header, then every tensor's bytes in the header's order.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Stored;
use crate::{Result, fs};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct NewTensor<'a> {
    pub name: String,
    pub stored: Stored,
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub bytes: &'a [u8],
}

impl<'a> NewTensor<'a> {
    /// A tensor of f32.
    pub fn f32(name: impl Into<String>, shape: &[usize], numbers: &'a [f32]) -> Self {
        NewTensor { name: name.into(), stored: Stored::F32, shape: shape.into(), bytes: bytemuck::cast_slice(numbers) }
    }

    /// A tensor of i32.
    pub fn i32(name: impl Into<String>, shape: &[usize], numbers: &'a [i32]) -> Self {
        NewTensor { name: name.into(), stored: Stored::I32, shape: shape.into(), bytes: bytemuck::cast_slice(numbers) }
    }
}

/// Writes a file in one go, replacing what was there only once it is complete.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
///
/// # Panics
/// If a tensor's bytes do not fit its shape and type.
pub fn write(path: impl AsRef<Path>, tensors: &[NewTensor], metadata: &[(&str, &str)]) -> Result<()> {
    let mut order: Vec<&NewTensor> = tensors.iter().collect();
    order.sort_by(|a, b| (b.stored.size(), &a.name).cmp(&(a.stored.size(), &b.name)));
    let list: Vec<_> = order.iter().map(|t| (t.name.as_str(), t.stored, t.shape.as_slice())).collect();
    for (tensor, (_, stored, shape)) in order.iter().zip(&list) {
        let bytes = shape.iter().product::<usize>() * stored.size();
        assert_eq!(tensor.bytes.len(), bytes, "{} should have as many bytes as its shape", tensor.name);
    }
    write_streamed(path, &list, metadata, |out| order.iter().try_for_each(|t| out.write_all(t.bytes)))
}

/// Writes a file whose numbers `fill` produces in the order of `tensors`.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), also if `fill` writes too few or too many bytes.
pub fn write_streamed(
    path: impl AsRef<Path>,
    tensors: &[(&str, Stored, &[usize])],
    metadata: &[(&str, &str)],
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let (header, data_bytes) = header(tensors, metadata);
    fs::write_atomically(path, |file| {
        let mut out = Counted { inner: BufWriter::with_capacity(1 << 20, file), bytes: 0 };
        out.write_all(&header)?;
        fill(&mut out)?;
        out.flush()?;
        if out.bytes == header.len() + data_bytes {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} bytes instead of {}", out.bytes, header.len() + data_bytes)))
        }
    })
}

/// The bytes before the data, padded so that the data is aligned; and the size of the data.
fn header(tensors: &[(&str, Stored, &[usize])], metadata: &[(&str, &str)]) -> (Vec<u8>, usize) {
    let mut map = Map::new();
    if !metadata.is_empty() {
        let strings: Map<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), Value::from(*v))).collect();
        map.insert("__metadata__".into(), strings.into());
    }
    let mut at = 0;
    for (name, stored, shape) in tensors {
        let end = at + shape.iter().product::<usize>() * stored.size();
        map.insert(name.to_string(), json!({"dtype": stored, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut json = Value::from(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    (bytes, at)
}

struct Counted<W> {
    inner: W,
    bytes: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

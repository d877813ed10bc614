//! The header, read more strictly than the format's own library does: nothing about a file may be ambiguous.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

const MAX_HEADER_BYTES: usize = 16 << 20;
const MAX_TENSORS: usize = 65_536;
const MAX_RANK: usize = 8;

/// Element types of the format that are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Stored {
    Bool,
    U8,
    I8,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Stored {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Stored::Bool | Stored::U8 | Stored::I8 => 1,
            Stored::I16 | Stored::U16 | Stored::F16 | Stored::Bf16 => 2,
            Stored::I32 | Stored::U32 | Stored::F32 => 4,
            Stored::I64 | Stored::U64 | Stored::F64 => 8,
        }
    }

    /// True for floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Stored::F16 | Stored::Bf16 | Stored::F32 | Stored::F64)
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub stored: Stored,
    pub shape: Vec<usize>,
    /// Its bytes, counted from the beginning of the file.
    pub range: Range<usize>,
}

/// What a file says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    /// Tensors in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The free-form strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads and checks the header of a whole file's bytes; the error says what is wrong.
    pub(super) fn parse(file: &[u8]) -> Result<Self, String> {
        let (length, rest) = file.split_first_chunk::<8>().ok_or("is too short for a safetensors file")?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES.min(rest.len()) as u64 || rest.first() != Some(&b'{') {
            let plain =
                || format!("is not a safetensors file, or cut off: a header of {length} bytes in {}", file.len());
            return Err(other_format(file).map_or_else(plain, String::from));
        }
        let (json, data) = rest.split_at(length as usize);
        let raw: Raw = serde_json::from_slice(json).map_err(|e| format!("has a malformed header: {e}"))?;
        let start = file.len() - data.len();
        let mut entries = Vec::with_capacity(raw.entries.len());
        for (name, info) in raw.entries {
            let Info { dtype, shape: Dims(shape), data_offsets: (from, to) } = info;
            let count = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
            let bytes = count.and_then(|n| n.checked_mul(dtype.size()));
            if from > to || to > data.len() || bytes != Some(to - from) {
                let have = data.len();
                return Err(format!("{name} {shape:?} {dtype} cannot be the bytes {from}..{to} of {have}; cut off?"));
            }
            entries.push(Entry { name, stored: dtype, shape, range: start + from..start + to });
        }
        entries.sort_by_key(|e| (e.range.start, e.range.end));
        let mut at = start;
        for entry in &entries {
            if entry.range.start != at {
                return Err(format!("{} does not begin where the tensor before it ends", entry.name));
            }
            at = entry.range.end;
        }
        if at != file.len() {
            return Err(format!("has {} bytes that belong to no tensor", file.len() - at));
        }
        Ok(Header { entries, metadata: raw.metadata })
    }
}

/// What a file is that is not safetensors, by its first bytes.
fn other_format(file: &[u8]) -> Option<&'static str> {
    let pickle = "is a pickle file, which can run code when it is read, and is refused; convert it once with Python: \
                  from safetensors.torch import save_file; import torch; x = torch.load(IN, weights_only=True); \
                  save_file({k: v.contiguous() for k, v in x.get(\"state_dict\", x).items() if hasattr(v, \
                  \"contiguous\")}, \"OUT.safetensors\")";
    match file {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, b'}' | b']' | b'c' | b'(' | 0x8a | 0x95, ..] => Some(pickle),
        [b'G', b'G', b'U', b'F', ..] => Some("is a GGUF file; only safetensors files can be read"),
        _ if file.starts_with(b"version https://git-lfs") => {
            Some("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
        }
        _ if file.starts_with(b"<!DOCTYPE") || file.starts_with(b"<html") => {
            Some("is a web page, not weights; the download went wrong")
        }
        _ => None,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: Stored,
    shape: Dims,
    data_offsets: (usize, usize),
}

/// A shape of bounded rank, so that no header can make a long list of it.
struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Short;
        impl<'de> Visitor<'de> for Short {
            type Value = Dims;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        deserializer.deserialize_seq(Short)
    }
}

#[derive(Default)]
struct Raw {
    entries: Vec<(String, Info)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let (mut raw, mut seen) = (Raw::default(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name:?} appears twice")));
                    }
                    if name == "__metadata__" {
                        raw.metadata = map.next_value()?;
                        continue;
                    }
                    if name.is_empty() || name.chars().any(char::is_control) {
                        return Err(A::Error::custom(format!("{name:?} cannot be the name of a tensor")));
                    }
                    if raw.entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let info = map.next_value()?;
                    raw.entries.push((name, info));
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

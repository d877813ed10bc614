//! Named tensors in and out of a program: draws, dumps, and the operands of one module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::safetensors::{Entry, NewTensor, TensorFile, write};
use crate::{Error, Result, Shape};

/// A file of named tensors; remembers which were asked for.
#[derive(Debug)]
pub struct NamedTensors {
    file: TensorFile,
    index: BTreeMap<String, usize>,
    used: Mutex<BTreeSet<String>>,
}

impl NamedTensors {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// [`Error::Input`] if it is malformed, [`Error::Io`] if it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path).map_err(as_input)?;
        let entries = file.header().entries();
        if let Some(entry) = entries.iter().find(|e| e.shape.len() > 6) {
            return Err(Error::input(file.path(), format!("{} has more than six dimensions", entry.name)));
        }
        let index = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(NamedTensors { file, index, used: Mutex::default() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Free-form strings of the file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.file.header().metadata()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        self.index.get(name).map(|&i| Shape::new(&self.file.header().entries()[i].shape))
    }

    /// A tensor of any type as f32, if there is one of that name.
    ///
    /// # Errors
    /// [`Error::Input`] if the file ends early.
    pub fn floats(&self, name: &str) -> Result<Option<(Shape, Vec<f32>)>> {
        let Some(entry) = self.take(name) else { return Ok(None) };
        let numbers = if entry.stored.is_float() {
            self.file.numbers(entry).map_err(as_input)?.to_f32().into_owned()
        } else {
            self.file.integers(entry).map_err(as_input)?.into_iter().map(|x| x as f32).collect()
        };
        Ok(Some((Shape::new(&entry.shape), numbers)))
    }

    /// A tensor of whole numbers, whatever their type, if there is one of that name.
    ///
    /// # Errors
    /// [`Error::Input`] if a number has a fraction.
    pub fn integers(&self, name: &str) -> Result<Option<(Shape, Vec<i64>)>> {
        let Some(entry) = self.take(name) else { return Ok(None) };
        let shape = Shape::new(&entry.shape);
        if !entry.stored.is_float() {
            return Ok(Some((shape, self.file.integers(entry).map_err(as_input)?)));
        }
        let data = self.file.numbers(entry).map_err(as_input)?;
        let numbers = data.to_f32();
        if let Some(x) = numbers.iter().find(|x| x.fract() != 0.0 || x.abs() > 1e9) {
            return Err(Error::input(self.path(), format!("{name} has {x} where whole numbers are needed")));
        }
        Ok(Some((shape, numbers.iter().map(|&x| x as i64).collect())))
    }

    /// Names nobody asked for.
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.lock().expect("no holder of the lock should have panicked");
        self.index.keys().filter(|name| !used.contains(*name)).cloned().collect()
    }

    fn take(&self, name: &str) -> Option<&Entry> {
        let &i = self.index.get(name)?;
        self.used.lock().expect("no holder of the lock should have panicked").insert(name.into());
        Some(&self.file.header().entries()[i])
    }
}

fn as_input(error: Error) -> Error {
    match error {
        Error::Model { path, detail } => Error::Input { path, detail },
        other => other,
    }
}

/// Collects tensors for a file.
#[derive(Debug, Default)]
pub struct TensorWriter {
    floats: BTreeMap<String, (Shape, Vec<f32>)>,
    integers: BTreeMap<String, (Shape, Vec<i32>)>,
}

impl TensorWriter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of f32, or replaces it.
    ///
    /// # Panics
    /// If the numbers do not fill the shape.
    pub fn floats(&mut self, name: impl Into<String>, shape: impl Into<Shape>, numbers: Vec<f32>) -> &mut Self {
        let shape = shape.into();
        assert_eq!(numbers.len(), shape.count(), "the numbers should fill the shape {shape}");
        self.floats.insert(name.into(), (shape, numbers));
        self
    }

    /// Adds a tensor of i32, or replaces it.
    ///
    /// # Panics
    /// If the numbers do not fill the shape.
    pub fn integers(&mut self, name: impl Into<String>, shape: impl Into<Shape>, numbers: Vec<i32>) -> &mut Self {
        let shape = shape.into();
        assert_eq!(numbers.len(), shape.count(), "the numbers should fill the shape {shape}");
        self.integers.insert(name.into(), (shape, numbers));
        self
    }

    /// Writes everything, replacing the file at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl Into<PathBuf>) -> Result<()> {
        let floats = self.floats.iter().map(|(name, (shape, x))| NewTensor::f32(name, shape, x));
        let integers = self.integers.iter().map(|(name, (shape, x))| NewTensor::i32(name, shape, x));
        write(path.into(), &floats.chain(integers).collect::<Vec<_>>(), &[])
    }
}

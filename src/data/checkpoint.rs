//! Weights on disk as a source of parameters: one or several safetensors files under the model's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::family::{self, Family};
use super::safetensors::{Entry, TensorFile, non_finite};
use crate::error::abridged;
use crate::nn::{Fetched, ParamSource, Params};
use crate::{DType, Device, Error, Result, Shape};

/// Parameters that have no use outside of training, and may be left over.
const SPARE: [&str; 1] = ["logit_scale"];

/// A checkpoint that keeps track of what a model takes from it, so that nothing is missing, misshapen or left over
/// unnoticed.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Model name -> (file, entry).
    index: BTreeMap<String, (usize, usize)>,
    allow_non_finite: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: BTreeSet<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
}

impl Checkpoint {
    /// One file.
    ///
    /// # Errors
    /// What [`TensorFile::open`] reports.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_all(path.as_ref(), &[path.as_ref().to_path_buf()])
    }

    /// Several files that share the names among them; errors that concern all of them are reported at `path`.
    ///
    /// # Errors
    /// What [`TensorFile::open`] reports; [`Error::Model`] if two files have the same name.
    pub fn open_all(path: impl AsRef<Path>, files: &[PathBuf]) -> Result<Self> {
        let files = files.iter().map(TensorFile::open).collect::<Result<Vec<_>>>()?;
        let mut checkpoint = Checkpoint {
            path: path.as_ref().into(),
            files,
            index: BTreeMap::new(),
            allow_non_finite: false,
            state: Mutex::default(),
        };
        checkpoint.rename(|name| Some(name.to_string()))?;
        Ok(checkpoint)
    }

    /// Gives the stored names those of the model; names without one are left out.
    ///
    /// # Errors
    /// [`Error::Model`] if two stored names become the same.
    pub fn renamed(mut self, name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        self.rename(name)?;
        Ok(self)
    }

    fn rename(&mut self, rename: impl Fn(&str) -> Option<String>) -> Result<()> {
        self.index.clear();
        for (f, file) in self.files.iter().enumerate() {
            for (e, entry) in file.header().entries().iter().enumerate() {
                if let Some(name) = rename(&entry.name)
                    && let Some((other, at)) = self.index.insert(name, (f, e))
                {
                    let other = &self.files[other].header().entries()[at].name;
                    let detail = format!("{} and {other} are the same parameter", entry.name);
                    return Err(Error::model(file.path(), detail));
                }
            }
        }
        Ok(())
    }

    /// Lets NaNs and infinities pass.
    pub fn allowing_non_finite(mut self) -> Self {
        self.allow_non_finite = true;
        self
    }

    /// What errors that concern the whole checkpoint name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files it is made of.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// Model names and what is stored of them, sorted.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.index.iter().map(|(name, &at)| (name.as_str(), self.at(at).1))
    }

    /// What is stored under a model name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).map(|&at| self.at(at).1)
    }

    /// What kind of file this is, by its stored names.
    pub fn family(&self) -> Family {
        let stored = self.files.iter().flat_map(|f| f.header().entries());
        family::identify(stored.map(|e| (e.name.as_str(), e.shape.as_slice())))
    }

    /// The root of the parameters, for a model of several sources; [`finish`](Self::finish) each of them after.
    pub fn params(&self, device: &Device, dtype: Option<DType>) -> Params<'_> {
        Params::new(self, device, dtype)
    }

    /// Builds a model from these parameters and makes sure that all of them were taken.
    ///
    /// # Errors
    /// What `build` and [`finish`](Self::finish) report.
    pub fn load<T>(
        &self,
        device: &Device,
        dtype: Option<DType>,
        build: impl FnOnce(&Params) -> Result<T>,
    ) -> Result<T> {
        let model = build(&self.params(device, dtype))?;
        self.finish()?;
        Ok(model)
    }

    /// Reports everything a model asked for in vain, and everything it did not ask for. A model is only usable
    /// after this.
    ///
    /// # Errors
    /// [`Error::Model`] that names the missing, misshapen and unexpected tensors.
    pub fn finish(&self) -> Result<()> {
        let state = self.lock();
        let left = |name: &&String| !state.used.contains(*name) && !SPARE.contains(&name.as_str());
        let unexpected: Vec<_> = self.index.keys().filter(left).cloned().collect();
        let lists = [("lacks", &state.missing), ("misshapes", &state.misshapen), ("has unexpected", &unexpected)];
        let problems: Vec<_> = lists
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} {} ({})", tensors(names.len()), abridged(names)))
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        let family = self.family().to_string();
        Err(Error::model(&self.path, format!("{}; the file is {family}", problems.join("; "))))
    }

    fn at(&self, (file, entry): (usize, usize)) -> (&TensorFile, &Entry) {
        let file = &self.files[file];
        (file, &file.header().entries()[entry])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock should have panicked")
    }
}

impl ParamSource for Checkpoint {
    /// Missing and misshapen tensors are noted for [`Checkpoint::finish`].
    fn fetch(&self, name: &str, shape: Shape) -> Result<Fetched<'_>> {
        let Some(&at) = self.index.get(name) else {
            self.lock().missing.push(name.into());
            return Ok(Fetched::Meta);
        };
        let (file, entry) = self.at(at);
        self.lock().used.insert(name.into());
        if !same_numbers(&entry.shape, &shape) || !entry.stored.is_float() {
            let detail = format!("{name} {} {:?} instead of {:?}", entry.stored, entry.shape, &shape[..]);
            self.lock().misshapen.push(detail);
            return Ok(Fetched::Meta);
        }
        let data = file.numbers(entry)?;
        if !self.allow_non_finite
            && let Some((first, count)) = non_finite(&data)
        {
            let detail = format!("{} has {count} numbers that are not finite, the first at {first}", entry.name);
            return Err(Error::model(file.path(), detail));
        }
        Ok(Fetched::Data(data))
    }

    fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}

/// Equal shapes, or a linear layer and the 1x1 convolution that computes the same.
fn same_numbers(stored: &[usize], asked: &[usize]) -> bool {
    let linear = |shape: &[usize]| match *shape {
        [n, k, 1, 1] => vec![n, k],
        _ => shape.to_vec(),
    };
    linear(stored) == linear(asked)
}

fn tensors(count: usize) -> String {
    if count == 1 { "one tensor".into() } else { format!("{count} tensors") }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path.display(), self.index.len())
    }
}

//! Where a model's parameters come from. A model asks for them by checkpoint name and shape, hence its set of
//! parameters is what its constructor asks for: [`Recorder`] lists it without any numbers.

use std::fmt::Display;
use std::sync::Mutex;

use crate::{DType, Device, Error, HostData, Result, Shape, Tensor, Weight};

/// Something that has a model's parameters.
pub trait ParamSource {
    /// The numbers called `name`, which must have `shape`. Marks the name as used.
    ///
    /// # Errors
    /// If the numbers cannot be had. A source may instead answer [`Fetched::Meta`], note the trouble, and
    /// report all of it once the model has asked for everything.
    fn fetch(&self, name: &str, shape: Shape) -> Result<Fetched<'_>>;

    /// True if there is a parameter of that name: for those a model can do without.
    fn contains(&self, name: &str) -> bool;
}

/// What a source answers.
pub enum Fetched<'a> {
    /// Row-major numbers.
    Data(HostData<'a>),
    /// Names and shapes only.
    Meta,
}

/// A cursor into a source: a prefix of names, the device, and the storage type of weights.
#[derive(Clone)]
pub struct Params<'a> {
    source: &'a dyn ParamSource,
    device: Device,
    dtype: Option<DType>,
    prefix: String,
}

impl<'a> Params<'a> {
    /// The root of `source`. Weights are stored as `dtype`, or as they come when `None`.
    pub fn new(source: &'a dyn ParamSource, device: &Device, dtype: Option<DType>) -> Self {
        Params { source, device: device.clone(), dtype, prefix: String::new() }
    }

    /// The parameters below `name`.
    pub fn at(&self, name: impl Display) -> Params<'a> {
        Params { prefix: self.join(name), ..self.clone() }
    }

    /// The full name of the parameter `leaf`.
    pub fn name(&self, leaf: &str) -> String {
        self.join(leaf)
    }

    /// The name this cursor stands at; empty at the root.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The device the parameters go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A frozen linear or convolution weight.
    ///
    /// # Shapes
    /// `(N, K)` or `(N, C, kh, kw)`.
    ///
    /// # Errors
    /// What the source reports; [`Error::Shape`] for another rank; [`Error::Config`] if a number does not fit
    /// the storage type.
    pub fn weight(&self, leaf: &str, shape: impl Into<Shape>) -> Result<Weight> {
        let (name, shape) = (self.name(leaf), shape.into());
        match self.source.fetch(&name, shape)? {
            Fetched::Meta => Weight::meta(&self.device, shape, self.dtype.unwrap_or(DType::F32)),
            Fetched::Data(data) => {
                let dtype = self.dtype.unwrap_or(data.dtype());
                let stored = data.to_dtype(dtype);
                if let (HostData::F32(_), HostData::F16(narrow)) = (&data, &stored)
                    && let Some(at) = narrow.iter().position(|x| !x.is_finite())
                {
                    let value = data.to_f32()[at];
                    let detail = format!("{name}[{at}] = {value} does not fit f16; use fp32");
                    return Err(Error::config("precision", detail));
                }
                Weight::new(&self.device, shape, &stored)
            }
        }
    }

    /// A bias, norm or embedding, as f32. Zeros where the source has no numbers.
    ///
    /// # Errors
    /// What the source reports.
    pub fn tensor(&self, leaf: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        match self.source.fetch(&self.name(leaf), shape)? {
            Fetched::Meta => Ok(Tensor::zeros(&self.device, shape)),
            Fetched::Data(data) => Tensor::from_slice(&self.device, shape, &data.to_f32()),
        }
    }

    /// True if the source has a parameter `leaf`.
    pub fn contains(&self, leaf: &str) -> bool {
        self.source.contains(&self.name(leaf))
    }

    fn join(&self, name: impl Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A source without numbers, which remembers what is asked of it. It says to contain everything.
#[derive(Default)]
pub struct Recorder {
    asked: Mutex<Vec<(String, Shape)>>,
}

impl Recorder {
    /// Nothing asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names and shapes in the order of asking.
    pub fn names(&self) -> Vec<(String, Shape)> {
        self.asked.lock().expect("no holder of the lock should have panicked").clone()
    }
}

impl ParamSource for Recorder {
    fn fetch(&self, name: &str, shape: Shape) -> Result<Fetched<'_>> {
        self.asked.lock().expect("no holder of the lock should have panicked").push((name.into(), shape));
        Ok(Fetched::Meta)
    }

    fn contains(&self, _name: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::RuleWeights;

    fn cpu() -> Device {
        Device::cpu(Some(1)).expect("one thread should start")
    }

    #[test]
    fn a_recorder_lists_what_a_constructor_asks_for() {
        let recorder = Recorder::new();
        let root = Params::new(&recorder, &cpu(), Some(DType::F16));
        let block = root.at("down_blocks").at(0);
        assert_eq!(block.weight("conv.weight", [4, 3, 3, 3]).unwrap().dtype(), DType::F16);
        assert_eq!(block.tensor("conv.bias", [4]).unwrap().to_vec(), [0.0; 4]);
        assert!(block.contains("anything"));
        assert_eq!((root.prefix(), block.prefix()), ("", "down_blocks.0"));
        let names = [("down_blocks.0.conv.weight", [4, 3, 3, 3].into()), ("down_blocks.0.conv.bias", [4].into())];
        assert_eq!(recorder.names(), names.map(|(n, s)| (n.to_string(), s)));
    }

    #[test]
    fn weights_take_the_asked_storage_type() {
        let names = [("a.weight".to_string(), Shape::from([2, 3]))];
        let rule = RuleWeights::new(&names, 1.0);
        let as_stored = Params::new(&rule, &cpu(), None).weight("a.weight", [2, 3]).unwrap();
        let narrow = Params::new(&rule, &cpu(), Some(DType::F16)).at("a").weight("weight", [2, 3]).unwrap();
        assert_eq!((as_stored.dtype(), narrow.dtype()), (DType::F32, DType::F16));
        for (x, y) in as_stored.to_vec().iter().zip(narrow.to_vec()) {
            assert!((x - y).abs() <= x.abs() / 2048.0);
        }
    }

    #[test]
    fn numbers_beyond_f16_are_refused_by_name() {
        struct Huge;
        impl ParamSource for Huge {
            fn fetch(&self, _: &str, shape: Shape) -> Result<Fetched<'_>> {
                let mut x = vec![1.0; shape.count()];
                x[2] = 1e5;
                Ok(Fetched::Data(x.into()))
            }
            fn contains(&self, _: &str) -> bool {
                true
            }
        }
        assert!(Params::new(&Huge, &cpu(), None).weight("w", [2, 2]).is_ok());
        let error = Params::new(&Huge, &cpu(), Some(DType::F16)).weight("w", [2, 2]).unwrap_err().to_string();
        assert!(error.contains("w[2] = 100000"), "{error}");
    }
}

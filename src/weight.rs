//! Frozen weight matrices in the layout their device computes with.

use std::sync::Arc;

use crate::device::cpu::{self, FilterDims};
use crate::{DType, Device, Error, HostData, Result, Shape, Tensor};

/// A frozen weight: linear `(N, K)` or convolution `(N, C, kh, kw)`, packed once for its device and never
/// differentiated. Cloning shares the memory.
#[derive(Clone)]
pub struct Weight {
    shape: Shape,
    device: Device,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// No numbers: stands for a parameter where only names and shapes count.
    Meta(DType),
    Cpu(Arc<cpu::Packed>),
}

impl Weight {
    /// Packs host numbers in the storage type they come in.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `shape` has two or four dimensions and as many elements as `data`.
    pub fn new(device: &Device, shape: impl Into<Shape>, data: &HostData) -> Result<Self> {
        let shape = shape.into();
        let dims = filter_dims(shape)?;
        if data.len() != shape.count() {
            return Err(Error::shape("weight", format!("{} numbers do not fill the shape {shape}", data.len())));
        }
        let storage = match device {
            Device::Cpu(cpu) => Storage::Cpu(Arc::new(cpu::Packed::new(cpu, dims, data))),
        };
        Ok(Weight { shape, device: device.clone(), storage })
    }

    /// A weight without numbers, for enumerating the parameters of a model. Computing with it panics.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `shape` has two or four dimensions.
    pub fn meta(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        filter_dims(shape)?;
        Ok(Weight { shape, device: device.clone(), storage: Storage::Meta(dtype) })
    }

    /// This weight plus `scale * up @ down`, in f32: a LoRA merged for sampling.
    ///
    /// # Shapes
    /// `down` (R, K), `up` (N, R), where K is the product of all dimensions but the first.
    ///
    /// # Errors
    /// [`Error::Shape`] if the factors do not fit.
    pub fn merged(&self, down: &Tensor, up: &Tensor, scale: f32) -> Result<Self> {
        let (n, k) = (self.rows(), self.columns());
        let r = down.shape().first().copied().unwrap_or(0);
        if down.shape()[..] != [r, k] || up.shape()[..] != [n, r] {
            let detail = format!("{} @ {} does not fit {}", up.shape(), down.shape(), self.shape);
            return Err(Error::shape("merge", detail));
        }
        let Device::Cpu(cpu) = &self.device;
        let merged = self.packed().merged(cpu, down.host(), up.host(), scale);
        Ok(Weight { storage: Storage::Cpu(Arc::new(merged)), ..self.clone() })
    }

    /// The numbers as f32, row-major in the checkpoint's order.
    pub fn to_vec(&self) -> Vec<f32> {
        let Device::Cpu(cpu) = &self.device;
        self.packed().unpack(cpu)
    }

    /// Dimensions as in the checkpoint.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Output features N.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Input features: the product of all dimensions but the first.
    pub fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Meta(dtype) => *dtype,
            Storage::Cpu(packed) => packed.dtype(),
        }
    }

    /// Bytes of storage, padding included.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Meta(dtype) => self.shape.count() * dtype.size(),
            Storage::Cpu(packed) => packed.bytes(),
        }
    }

    /// The device that holds the numbers.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True if both are the same numbers in the same memory.
    pub fn same(&self, other: &Weight) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Cpu(a), Storage::Cpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The packed numbers in host memory.
    pub(crate) fn packed(&self) -> &cpu::Packed {
        match &self.storage {
            Storage::Meta(_) => panic!("a weight without numbers should not be computed with"),
            Storage::Cpu(packed) => packed,
        }
    }
}

fn filter_dims(shape: Shape) -> Result<FilterDims> {
    match shape[..] {
        [n, c] => Ok(FilterDims { n, c, kh: 1, kw: 1 }),
        [n, c, kh, kw] => Ok(FilterDims { n, c, kh, kw }),
        _ => Err(Error::shape("weight", format!("{shape} is neither (N, K) nor (N, C, kh, kw)"))),
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Weight{} {}", self.shape, self.dtype())
    }
}

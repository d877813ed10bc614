//! Dense tensors: a shape, numbers and the device that holds them. No mathematics here.

use std::sync::Arc;

use crate::device::cpu::Buffer;
use crate::{DType, Device, Error, Result, Shape};

/// A dense, row-major, immutable-by-sharing tensor of f32 numbers; cloning shares the memory.
///
/// Images and videos are channels-last: `(B*F, H, W, C)`, whose rows are pixels.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    storage: Storage,
    device: Device,
}

#[derive(Clone)]
enum Storage {
    Cpu(Arc<Buffer>),
}

impl Tensor {
    /// A tensor with unspecified contents, to be filled by an operation.
    pub fn empty(device: &Device, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let storage = match device {
            Device::Cpu(cpu) => Storage::Cpu(Arc::new(cpu.alloc(shape.count()))),
        };
        Tensor { shape, storage, device: device.clone() }
    }

    /// A tensor of zeros.
    pub fn zeros(device: &Device, shape: impl Into<Shape>) -> Self {
        Self::full(device, shape, 0.0)
    }

    /// A tensor filled with `value`.
    pub fn full(device: &Device, shape: impl Into<Shape>, value: f32) -> Self {
        let mut tensor = Self::empty(device, shape);
        tensor.host_mut().fill(value);
        tensor
    }

    /// Copies host numbers to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `data` has exactly the shape's number of elements.
    pub fn from_slice(device: &Device, shape: impl Into<Shape>, data: &[f32]) -> Result<Self> {
        let shape = shape.into();
        if data.len() != shape.count() {
            return Err(Error::shape("tensor", format!("{} numbers do not fill the shape {shape}", data.len())));
        }
        let mut tensor = Self::empty(device, shape);
        tensor.host_mut().copy_from_slice(data);
        Ok(tensor)
    }

    /// Copies the numbers to the host, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        self.host().to_vec()
    }

    /// Dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Cpu(_) => DType::F32,
        }
    }

    /// The device that holds the numbers.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        self.shape.count() * self.dtype().size()
    }

    /// The same numbers under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the element counts differ.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.count() != self.shape.count() {
            return Err(Error::shape("reshape", format!("{} cannot become {shape}", self.shape)));
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// Rows `start .. start + count` of the first dimension, copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range leaves the first dimension.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        let first = self.shape.first().copied().unwrap_or(0);
        if start + count > first {
            return Err(Error::shape("narrow", format!("rows {start}..{} of {}", start + count, self.shape)));
        }
        let each = self.shape[1..].iter().product::<usize>();
        let mut dims = self.shape.to_vec();
        dims[0] = count;
        Self::from_slice(&self.device, &dims[..], &self.host()[start * each..(start + count) * each])
    }

    /// Tensors of equal row shape stacked along the first dimension, copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are none, or their shapes differ beyond the first dimension.
    pub fn stack_rows(parts: &[&Tensor]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::shape("stack_rows", "needs at least one tensor"));
        };
        let mut dims = first.shape.to_vec();
        dims[0] = 0;
        for part in parts {
            if part.shape.len() != dims.len() || part.shape[1..] != dims[1..] {
                return Err(Error::shape("stack_rows", format!("{} does not continue {}", part.shape, first.shape)));
            }
            dims[0] += part.shape[0];
        }
        let mut out = Self::empty(&first.device, &dims[..]);
        let mut at = 0;
        for part in parts {
            out.host_mut()[at..at + part.shape.count()].copy_from_slice(part.host());
            at += part.shape.count();
        }
        Ok(out)
    }

    /// True if every number is finite.
    pub fn is_finite(&self) -> bool {
        self.host().iter().all(|x| x.is_finite())
    }

    /// The numbers in host memory.
    pub(crate) fn host(&self) -> &[f32] {
        match &self.storage {
            Storage::Cpu(buffer) => buffer,
        }
    }

    /// The numbers in host memory, for writing; copies first if the memory is shared.
    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        let Device::Cpu(cpu) = &self.device;
        match &mut self.storage {
            Storage::Cpu(buffer) => {
                if Arc::get_mut(buffer).is_none() {
                    let mut own = cpu.alloc(buffer.len());
                    own.copy_from_slice(buffer);
                    *buffer = Arc::new(own);
                }
                Arc::get_mut(buffer).expect("the buffer should be unshared after the copy")
            }
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Tensor{}@{}", self.shape, self.device)
    }
}

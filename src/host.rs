//! Numbers in host memory, borrowed from a file or owned, in either storage type.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::DType;

/// A row-major run of numbers.
#[derive(Clone, Debug)]
pub enum HostData<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
}

impl HostData<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostData::F32(x) => x.len(),
            HostData::F16(x) => x.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        match self {
            HostData::F32(_) => DType::F32,
            HostData::F16(_) => DType::F16,
        }
    }

    /// The numbers as f32, exactly.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            HostData::F32(x) => Cow::Borrowed(x),
            HostData::F16(x) => Cow::Owned(x.to_f32_vec()),
        }
    }

    /// The numbers in another storage type; narrowing rounds to nearest even.
    pub fn to_dtype(&self, dtype: DType) -> HostData<'_> {
        match (self, dtype) {
            (HostData::F32(x), DType::F16) => {
                let mut narrow = vec![f16::ZERO; x.len()];
                narrow.convert_from_f32_slice(x);
                HostData::F16(Cow::Owned(narrow))
            }
            (HostData::F16(x), DType::F16) => HostData::F16(Cow::Borrowed(x)),
            (_, DType::F32) => HostData::F32(self.to_f32()),
        }
    }
}

impl<'a> From<&'a [f32]> for HostData<'a> {
    fn from(x: &'a [f32]) -> Self {
        HostData::F32(Cow::Borrowed(x))
    }
}

impl From<Vec<f32>> for HostData<'_> {
    fn from(x: Vec<f32>) -> Self {
        HostData::F32(Cow::Owned(x))
    }
}

impl<'a> From<&'a [f16]> for HostData<'a> {
    fn from(x: &'a [f16]) -> Self {
        HostData::F16(Cow::Borrowed(x))
    }
}

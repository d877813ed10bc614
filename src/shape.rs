//! Dimensions of a dense, row-major tensor.

use std::fmt;
use std::ops::Deref;

const MAX_RANK: usize = 6;

/// Up to six dimensions; dereferences to a slice. The empty shape is a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// The shape with the given dimensions.
    ///
    /// # Panics
    /// With more than six dimensions.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_RANK, "a shape should have at most {MAX_RANK} dimensions, not {}", dims.len());
        let mut all = [0; MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, rank: dims.len() as u8 }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.iter().product()
    }

    /// Size of the last dimension (1 for a scalar).
    pub fn last(&self) -> usize {
        self.split_last().map_or(1, |(&last, _)| last)
    }

    /// Product of all dimensions but the last: the rows of the matrix view.
    pub fn rows(&self) -> usize {
        self.split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// The same dimensions with another last one.
    pub fn with_last(mut self, last: usize) -> Self {
        assert!(self.rank > 0, "a scalar should not be given a last dimension");
        self.dims[self.rank as usize - 1] = last;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(dims: [usize; R]) -> Self {
        Shape::new(&dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape::new(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("(")?;
        for (i, d) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str(")")
    }
}

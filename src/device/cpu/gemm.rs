//! Products of activations with activations, by the `gemm` crate.

/// A strided matrix view: `(rows, columns)` with element strides.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix with `stride` elements from row to row.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Mat { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Self {
        Mat {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn check(&self) {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.data.len(), "a matrix view should lie within its numbers");
        }
    }
}

/// `out (M,N) = beta * out + alpha * a (M,K) b (K,N)` on the calling thread; `out` is row-major with
/// `out_stride` elements from row to row. `beta` = 0 overwrites.
pub(crate) fn gemm(out: &mut [f32], out_stride: usize, beta: f32, alpha: f32, a: Mat, b: Mat) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions should agree");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_stride + n <= out.len(), "the product should fit its output");
    a.check();
    b.check();
    // SAFETY: the views were checked to lie within their slices, and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

//! Products of activations with activations, by the `gemm` crate.

use super::Cpu;

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

    /// `count` rows from `first` on.
    fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "a run of rows should lie within its matrix");
        Mat { data: &self.data[first * self.row_stride..], rows: count, ..self }
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

/// [`gemm`] into a dense `out`, split over rows or columns of the output.
pub(crate) fn product(cpu: &Cpu, out: &mut [f32], beta: f32, alpha: f32, a: Mat, b: Mat) {
    let (m, n) = (a.rows, b.columns);
    assert_eq!(out.len(), m * n, "the product should fill its output");
    if m == 0 || n == 0 {
        return;
    }
    let (rows, columns) = task_size(m, n);
    if columns == n {
        cpu.chunks_mut(out, rows * n, |i, out| gemm(out, n, beta, alpha, a.rows(i * rows, out.len() / n), b));
        return;
    }
    let mut parts: Vec<_> = (0..n.div_ceil(columns)).map(|_| Vec::new()).collect();
    for row in out.chunks_mut(n) {
        row.chunks_mut(columns).zip(&mut parts).for_each(|(piece, part)| part.push(piece));
    }
    cpu.chunks_mut(&mut parts, 1, |i, part| {
        let out = &mut part[0];
        let width = out[0].len();
        let mut own = cpu.alloc(m * width);
        if beta != 0.0 {
            own.chunks_mut(width).zip(out.iter()).for_each(|(own, out)| own.copy_from_slice(out));
        }
        gemm(&mut own, width, beta, alpha, a, b.t().rows(i * columns, width).t());
        own.chunks(width).zip(out.iter_mut()).for_each(|(own, out)| out.copy_from_slice(own));
    });
}

/// Rows and columns of one task's output: about eight tasks, full rows where there are many.
fn task_size(m: usize, n: usize) -> (usize, usize) {
    const TASKS: usize = 8;
    match m {
        0..=255 => (m, n.div_ceil(TASKS).next_multiple_of(16).min(n).max(1)),
        _ => (m.div_ceil(TASKS).next_multiple_of(16), n),
    }
}

//! Safe matrix products over slices, by the `gemm` crate.

use std::marker::PhantomData;

use gemm::Parallelism;

/// Matrix view of a slice: element `(i, j)` is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a> Mat<'a> {
    /// Returns a view of `rows × cols` elements, with rows `stride` apart.
    ///
    /// # Panics
    ///
    /// If the view reaches beyond `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || data.len() >= (rows - 1) * stride + cols);
        Self { data, rows, cols, row: stride, col: 1 }
    }

    /// Returns the transposed view.
    pub fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows, row: self.col, col: self.row }
    }
}

/// Computes `dst = a b` or, with `add`, `dst += a b`, on the calling thread. `dst` is `a.rows × b.cols`, with rows `stride`
/// apart.
///
/// # Panics
///
/// If the sizes of `a` and `b` do not fit each other, or the product does not fit into `dst`.
pub fn gemm(dst: &mut [f32], stride: usize, add: bool, a: Mat<'_>, b: Mat<'_>) {
    let (m, n) = (a.rows, b.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert!(dst.len() >= (m - 1) * stride + n && stride >= n);
    // SAFETY: the assertion covers every element that the strides reach.
    unsafe { product(dst.as_mut_ptr(), stride, add, a, b) }
}

/// # Safety
///
/// `dst` must be valid for `a.rows` rows of `b.cols` elements, `stride` apart, and nothing else may touch them.
unsafe fn product(dst: *mut f32, stride: usize, add: bool, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!(a.cols, b.rows);
    // SAFETY: `Mat::new` checked the reach of the strides of `a` and `b` (`t` swaps extents and strides together); the caller
    // guarantees `dst`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Row-major matrix whose columns are split over threads.
pub(super) struct ColumnBlocks<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write disjoint columns, as `product` requires.
unsafe impl Sync for ColumnBlocks<'_> {}

impl<'a> ColumnBlocks<'a> {
    /// Returns all of `data` as rows of `cols` elements.
    pub(super) fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols));
        Self { rows: data.len() / cols, cols, data: data.as_mut_ptr(), borrowed: PhantomData }
    }

    /// Writes `a b` into the columns from `from` on.
    ///
    /// # Safety
    ///
    /// No two threads may write the same columns at the same time.
    pub(super) unsafe fn product(&self, from: usize, a: Mat<'_>, b: Mat<'_>) {
        assert!(a.rows <= self.rows && from + b.cols <= self.cols);
        if a.rows > 0 && b.cols > 0 {
            // SAFETY: inside the matrix by the assertion; exclusive by the caller's guarantee.
            unsafe { product(self.data.add(from), self.cols, false, a, b) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut dst = [1.0; 8];
        // [1 2; 4 5] from rows 3 apart, times its transpose.
        gemm(&mut dst, 4, false, Mat::new(&a, 2, 2, 3), Mat::new(&a, 2, 2, 3).t());
        assert_eq!(dst, [5.0, 14.0, 1.0, 1.0, 14.0, 41.0, 1.0, 1.0]);
        gemm(&mut dst, 4, true, Mat::new(&a, 2, 2, 3), Mat::new(&a, 2, 2, 3).t());
        assert_eq!(dst[..2], [10.0, 28.0]);
    }
}

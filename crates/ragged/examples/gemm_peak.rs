//! Measures the machine's peak in single-precision matrix products, with the `gemm` crate that training uses: the reference for
//! the throughput of a training run.
//!
//! ```sh
//! cargo run --release -p ragged --example gemm_peak
//! ```
//!
//! Every thread multiplies its own matrices, large enough for the full speed of `gemm` and small enough for the thread's cache.
//! Prints the best of ten rounds, in GFLOP/s, for one thread and for all.

use std::time::Instant;

use gemm::Parallelism;
use rayon::prelude::*;

const N: usize = 512;
const PRODUCTS: usize = 200;
const ROUNDS: usize = 10;

fn product(dst: &mut [f32], a: &[f32], b: &[f32]) {
    let n = N as isize;
    // SAFETY: three N × N matrices, row by row.
    unsafe {
        gemm::gemm(
            N,
            N,
            N,
            dst.as_mut_ptr(),
            1,
            n,
            false,
            a.as_ptr(),
            1,
            n,
            b.as_ptr(),
            1,
            n,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn gflops(threads: usize) -> f64 {
    let round = || {
        let started = Instant::now();
        (0..threads).into_par_iter().for_each(|_| {
            let (mut dst, a, b) = (vec![0f32; N * N], vec![0.5f32; N * N], vec![0.25f32; N * N]);
            (0..PRODUCTS).for_each(|_| product(&mut dst, &a, &b));
            assert_eq!(dst[0], N as f32 / 8.0);
        });
        (threads * PRODUCTS * 2 * N.pow(3)) as f64 / started.elapsed().as_secs_f64() / 1e9
    };
    (0..ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

fn main() {
    let threads = rayon::current_num_threads();
    println!("1 thread: {:.0} GFLOP/s", gflops(1));
    println!("{threads} threads: {:.0} GFLOP/s", gflops(threads));
}

//! Loops over slices that the compiler vectorises.

/// Calls `f`, compiled for the widest vectors of the processor, AVX-512 for example.
///
/// Covers only code inlined into `f`: functions and closures marked `#[inline(always)]`.
#[inline(always)]
pub fn widest<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Returns `e^x` to about 2 units in the last place; 0 below −87 (and for −∞), `e^88` above 88.
///
/// Uses arithmetic only, so that loops over it vectorise; `std`'s is a library call for each element. Range reduction to
/// `[-ln 2 / 2, ln 2 / 2]` in two steps (Cody and Waite), then a polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Below this the result would be denormal; −∞ ends up here too.
    const LOWEST: f32 = -87.0;
    // Adding 1.5 · 2²³ rounds to an integer, in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(LOWEST, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = 1.987_569_1e-4f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_6e-1)
        .mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { y * scale }
}

/// Returns `1 / (1 + e^−x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Returns the largest element; −∞ for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    // Lanes, because a single running maximum is one long dependency chain.
    let mut lanes = [f32::NEG_INFINITY; 64];
    let (chunks, rest) = x.as_chunks::<64>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Returns the sum, from 16 interleaved partial sums.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Returns `Σ (x − mean)²`, from 16 interleaved partial sums.
#[inline(always)]
pub fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = (v - mean).mul_add(v - mean, *lane);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>()
}

/// Returns the inner product, from 16 interleaved partial sums.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    debug_assert_eq!(x.len(), y.len());
    let mut lanes = [0f32; 16];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in xs.iter().zip(ys) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(x).zip(y) {
            *lane = a.mul_add(b, *lane);
        }
    }
    lanes.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Computes `y += a x`.
#[inline(always)]
pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    debug_assert_eq!(x.len(), y.len());
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(x, *y);
    }
}

/// Computes `x *= a`.
#[inline(always)]
pub fn scale(x: &mut [f32], a: f32) {
    for x in x {
        *x *= a;
    }
}

/// Replaces every `x` by `e^(x − shift)` and returns their sum.
#[inline(always)]
pub fn exp_shifted(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; 32];
    let (chunks, rest) = x.as_chunks_mut::<32>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = exp(*v - shift);
            *lane += *v;
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for v in rest {
        *v = exp(*v - shift);
        sum += *v;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_ulp() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 4e-7 * exact, "exp({x}) = {}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_shifted_gives_the_sum() {
        let mut x: Vec<f32> = (0..77).map(|i| i as f32 / 77.0).collect();
        let exact: Vec<f64> = x.iter().map(|&x| f64::from(x - 0.5).exp()).collect();
        let sum = widest(|| exp_shifted(&mut x, 0.5));
        assert!(x.iter().zip(&exact).all(|(&x, exact)| (f64::from(x) - exact).abs() < 1e-6));
        assert!((f64::from(sum) - exact.iter().sum::<f64>()).abs() < 1e-4);
    }

    #[test]
    fn reductions_take_every_element() {
        let x: Vec<f32> = (0..69).map(|i| i as f32).collect();
        assert_eq!((max(&x), sum(&x), dot(&x, &x)), (68.0, 2_346.0, 107_134.0));
        assert_eq!((max(&[]), sum(&[])), (f32::NEG_INFINITY, 0.0));
        assert_eq!(sum_of_squares(&x, 34.0), 27_370.0);
    }
}

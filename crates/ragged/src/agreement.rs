//! Comparison of operations on a device with the CPU, whose gradients are checked against finite differences: the cases and their
//! tolerances.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Result, Shape, Tensor, Var};
use schemas::config::Precision;

use super::{
    AttentionLayout, Bags, Candidates, Dropout, FeedForwardParameters, Queries, SelfAttentionParameters,
    TIME_BUCKETS, Targets, differentiate,
};

/// Tolerance of 32-bit results, as a share of the largest value: additions are in another order, and a product is three products
/// of TF32 parts instead of one of 24 bits.
const F32_TOLERANCE: f32 = 2e-4;
/// Tolerances of 16-bit results and of their gradients, as shares. Each number is right to one part in 256; gradients of biases
/// are sums over all pairs of tokens that nearly cancel.
const BF16_TOLERANCES: [f32; 2] = [1e-2, 1e-1];
/// Tolerance of finite differences, as a share of the directional derivative plus the gradient's length.
const DERIVATIVE: f32 = 2e-2;

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// Operation with its inputs.
pub struct Case {
    /// Operation and sizes.
    pub name: String,
    /// Number format of its products.
    pub precision: Precision,
    inputs: Vec<Tensor>,
    f: Function,
}

/// Differences between a device and the CPU in one case.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Agreement {
    /// Name of the case.
    pub case: String,
    /// Number format of its products.
    pub precision: Precision,
    /// Largest difference of the results, as a share of the CPU's largest value.
    pub result: f32,
    /// Largest such share over the gradients of all inputs.
    pub gradient: f32,
    /// Limits of `result` and `gradient`.
    pub tolerances: [f32; 2],
    /// Difference between the gradients and finite differences on the device itself along one direction, as a share. Set by
    /// [`compare`], for 32-bit cases.
    pub derivative: Option<f32>,
    /// Limit of `derivative`.
    pub derivative_tolerance: f32,
}

impl Agreement {
    /// Whether every difference is within its limit.
    pub fn holds(&self) -> bool {
        let within = |found: f32, most: f32| found <= most;
        let [result, gradient] = self.tolerances;
        within(self.result, result)
            && within(self.gradient, gradient)
            && self.derivative.is_none_or(|found| within(found, self.derivative_tolerance))
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, precision, result, gradient, tolerances: [most, most_gradient], .. } = self;
        let verdict = if self.holds() { "ok" } else { "TOO FAR" };
        write!(f, "{verdict:>7}  {case}, {precision}: result {result:.1e} (at most {most:.0e}), ")?;
        write!(f, "gradients {gradient:.1e} ({most_gradient:.0e})")?;
        match self.derivative {
            Some(apart) => {
                write!(f, ", from finite differences {apart:.1e} ({:.0e})", self.derivative_tolerance)
            }
            None => Ok(()),
        }
    }
}

impl Case {
    fn new(
        name: impl Into<String>,
        precision: Precision,
        inputs: Vec<Tensor>,
        f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> Self {
        Self { name: name.into(), precision, inputs, f: Box::new(f) }
    }

    /// Returns the result and the gradients of a weighted sum of it, computed on `device` and copied to the CPU.
    ///
    /// # Errors
    ///
    /// Errors of the operation, and an input that no gradient reaches.
    pub fn results(&self, device: &Device) -> Result<Vec<Tensor>> {
        results(&self.on(device)?, &self.f)
    }

    /// Compares `ours`, the results on a device, with `expected`, those on the CPU.
    ///
    /// # Errors
    ///
    /// Results of different shapes.
    pub fn agreement(&self, ours: &[Tensor], expected: &[Tensor]) -> Result<Agreement> {
        let mut distances = ours.iter().zip(expected).map(|(ours, expected)| distance(ours, expected));
        let result = distances.next().unwrap_or(Ok(0.0))?;
        let gradient =
            distances.try_fold(0.0, |most, distance| Ok::<_, candle_core::Error>(worst(most, distance?)))?;
        Ok(Agreement {
            case: self.name.clone(),
            precision: self.precision,
            result,
            gradient,
            tolerances: if self.precision == Precision::F32 { [F32_TOLERANCE; 2] } else { BF16_TOLERANCES },
            derivative: None,
            derivative_tolerance: DERIVATIVE,
        })
    }

    /// Copies the inputs to `device`.
    fn on(&self, device: &Device) -> Result<Vec<Tensor>> {
        self.inputs.iter().map(|t| t.to_device(device)).collect()
    }

    /// Returns the difference between the gradients on `device` and a central difference along a random direction, as a share.
    fn derivative(&self, device: &Device) -> Result<f32> {
        let inputs = self.on(device)?;
        let gradients = &results(&inputs, &self.f)?[1..];
        let step = 2e-3;
        let directions: Vec<Tensor> =
            inputs.iter().zip(100..).map(|(t, seed)| random(t.shape(), seed)).collect();
        let moved = |by: f64| -> Result<f64> {
            let inputs =
                inputs.iter().zip(&directions).map(|(t, along)| t + (along.to_device(device)? * by)?);
            weighted(&(self.f)(&inputs.collect::<Result<Vec<_>>>()?)?)
        };
        let difference = (moved(step)? - moved(-step)?) / (2.0 * step);
        let (mut along, mut squares) = (0.0, 0.0);
        for (gradient, direction) in gradients.iter().zip(&directions) {
            for (g, d) in values(gradient)?.into_iter().zip(values(direction)?) {
                along += f64::from(g) * f64::from(d);
                squares += f64::from(g) * f64::from(g);
            }
        }
        Ok(((difference - along).abs() / (along.abs() + squares.sqrt() + 1e-6)) as f32)
    }
}

/// Compares `device` with the CPU in all cases, and with finite differences in 32-bit ones.
///
/// # Errors
///
/// Errors of the operations and of the device. A difference above its limit is not an error: see [`Agreement::holds`].
pub fn compare(device: &Device) -> Result<Vec<Agreement>> {
    cases()
        .iter()
        .map(|case| {
            let mut agreement = case.agreement(&case.results(device)?, &case.results(&Device::Cpu)?)?;
            if case.precision == Precision::F32 {
                agreement.derivative = Some(case.derivative(device)?);
            }
            Ok(agreement)
        })
        .collect()
}

/// Returns cases of all operations of the model that have kernels: shapes that fill tiles and shapes that do not, empty
/// sequences, table rows without a gradient.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        self_attentions(precision, &mut cases);
        for (rows, d, f, dropout) in [(3, 8, 12, None), (259, 20, 33, dropped(3)), (140, 64, 256, None)] {
            cases.push(feed_forward(precision, (rows, d, f), dropout));
        }
        cross_entropies(precision, &mut cases);
    }
    for (rows, inputs, outputs) in [(7, 5, 3), (300, 40, 72)] {
        let tensors = [random((rows, inputs), 1), random((inputs, outputs), 2), random(outputs, 3)];
        let name = format!("linear, {rows} × {inputs} × {outputs}");
        cases.push(Case::new(name, Precision::Bf16, tensors.into(), |t| {
            super::linear(&t[0], &t[1], Some(&t[2]), Precision::Bf16)
        }));
    }
    // Fewer rows than one block takes, and more; narrow and wide rows, and rows too wide for the kernels.
    for (rows, d) in [(3, 8), (150, 40), (90, 130), (80, 500), (70, 1024), (2, 1025)] {
        let tensors = vec![random((rows, d), 1), random(d, 2), random(d, 3)];
        cases.push(Case::new(format!("layer norm, {rows} × {d}"), Precision::F32, tensors, |t| {
            super::layer_norm(&t[0], &t[1], &t[2])
        }));
    }
    for dropout in [None, dropped(0x1234_5678_9abc_def0)] {
        let tensors = vec![random((251, 71), 1), random((251, 71), 2)];
        let name = format!("residual sum{}", with(dropout));
        cases.push(Case::new(name, Precision::F32, tensors, move |t| {
            super::add_dropped(&t[0], &t[1], dropout)
        }));
    }
    // A table row in more bags than one warp sums, a row in none, and bags of several rows.
    let mut bags = Bags::default();
    bags.push([]);
    (0..200).for_each(|i| bags.push([5, i % 4]));
    bags.push([0, 0, 1]);
    let bags = Arc::new(bags);
    let table = vec![random((7, 40), 1)];
    cases.push(Case::new("bag means", Precision::F32, table.clone(), move |t| super::bag_mean(&t[0], &bags)));
    cases.push(Case::new("gather", Precision::F32, table, |t| super::gather(&t[0], &[3, 3, 0, 6, 3])));
    query_attentions(&mut cases);
    cases
}

fn dropped(seed: u64) -> Option<Dropout> {
    Some(Dropout { p: 0.4, seed })
}

fn with(dropout: Option<Dropout>) -> &'static str {
    if dropout.is_some() { ", dropout" } else { "" }
}

const LENGTHS: [usize; 7] = [70, 1, 0, 130, 9, 64, 3];

fn self_attentions(precision: Precision, cases: &mut Vec<Case>) {
    let tokens: usize = LENGTHS.iter().sum();
    let positions = LENGTHS.iter().flat_map(|&n| 0..n as u32);
    let fewer: Vec<u32> = positions.map(|i| (i / 3 + 1).min(i + 1)).collect();
    // Head widths that kernels are compiled for, widths in between, and one that is too wide.
    let shapes = [(2, 4), (2, 16), (1, 20), (2, 32), (1, 40), (2, 64), (1, 72), (1, 128), (1, 132)];
    for (i, (heads, width)) in shapes.into_iter().enumerate() {
        let (d, distance) = (heads * width, 20);
        let keys = (i % 2 == 1).then(|| fewer.clone());
        let columns = distance + if i % 3 == 2 { 0 } else { TIME_BUCKETS };
        let dropout = if i % 4 == 1 { dropped(3) } else { None };
        let visible = if keys.is_some() { ", visible lengths" } else { "" };
        let time = if columns > distance { ", time bias" } else { "" };
        let layout = layout(&LENGTHS, keys);
        // Weights as small as a model's, so that softmax does not saturate.
        let of = |shape: (usize, usize), seed| random(shape, seed) * (1.0 / shape.0 as f64).sqrt();
        let tensors = vec![
            random((tokens, d), 1),
            random(d, 2),
            random(d, 3),
            of((d, 3 * d), 4).unwrap_or_else(|_| unreachable!("a number times a tensor")),
            of((d, d), 5).unwrap_or_else(|_| unreachable!("a number times a tensor")),
            // Biases and log T in one tensor: the gradient of log T may nearly cancel, but its terms are as large as theirs.
            random((heads, columns + 1), 6),
        ];
        let name = format!("self-attention, {heads} heads of {width}{visible}{time}{}", with(dropout));
        cases.push(Case::new(name, precision, tensors, move |t| {
            let [x, gamma, beta, qkv, out, scores] = t else { unreachable!() };
            let bias = &scores.narrow(1, 0, columns)?.contiguous()?;
            let log_temperature = &scores.narrow(1, columns, 1)?.flatten_all()?;
            let parameters = SelfAttentionParameters {
                gamma,
                beta,
                qkv,
                out,
                bias,
                log_temperature,
                max_distance: distance,
                precision,
            };
            super::self_attention(x, parameters, &layout, dropout)
        }));
    }
}

fn feed_forward(precision: Precision, (rows, d, f): (usize, usize, usize), dropout: Option<Dropout>) -> Case {
    let tensors = vec![
        random((rows, d), 1),
        random(d, 2),
        random(d, 3),
        random((d, f), 4),
        random(f, 5),
        random((f, d), 6),
        random(d, 7),
    ];
    let name = format!("feed-forward, {rows} × {d} × {f}{}", with(dropout));
    Case::new(name, precision, tensors, move |t| {
        let [x, gamma, beta, up, up_bias, down, down_bias] = t else { unreachable!() };
        let parameters = FeedForwardParameters { gamma, beta, up, up_bias, down, down_bias, precision };
        super::feed_forward(x, parameters, dropout)
    })
}

fn cross_entropies(precision: Precision, cases: &mut Vec<Case>) {
    let mut case = |name: String, rows: usize, columns: usize, targets: Targets, candidates, smoothing| {
        let (targets, candidates) = (Arc::new(targets), Arc::new(candidates));
        let inputs = vec![random((rows, 24), 1), random((columns, 24), 2)];
        cases.push(Case::new(name, precision, inputs, move |t| {
            super::cross_entropy(&t[0], &t[1], &targets, &candidates, smoothing, precision)? * 1.5
        }));
    };
    for smoothing in [0.0, 0.1] {
        // Rows with several targets, some of them repeated, and a row without targets.
        let targets = Targets {
            offsets: vec![0, 2, 2, 3, 6],
            candidates: vec![0, 4, 2, 1, 1, 5],
            weights: vec![1.0, 0.5, 2.0, 1.0, 1.0, 0.25],
        };
        case(format!("full softmax, smoothing {smoothing}"), 4, 700, targets, Candidates::All, smoothing);
    }
    // All candidates are negatives; some are targets only; there are no negatives.
    for shift in [&[0.5, 0.1, 1.0, -0.5, 0.2, 0.0, 0.3][..], &[0.5, 0.1, 1.0, -0.5], &[]] {
        let targets =
            Targets { offsets: vec![0, 1, 2, 2, 3], candidates: vec![0, 4, 2], weights: vec![1.0, 0.5, 2.0] };
        let candidates = Candidates::Sampled {
            shift: shift.to_vec(),
            excluded_offsets: vec![0, 2, 3, 3, 4],
            excluded: vec![0, 3, 4, 2],
            certain_ranges: vec![0, 3, 3, 3, 0, 0, 0, 3],
            certain: vec![1, 3, 6],
        };
        case(format!("sampled softmax, {} negatives", shift.len()), 4, 7, targets, candidates, 0.0);
    }
    // Rows longer than the 8,192 logits that a block reads at once; targets shared by many rows.
    let (rows, columns, negatives) = (300, 20_500, 20_000);
    let targets = Targets {
        offsets: (0..=rows).collect(),
        candidates: (0..rows).map(|i| if i % 3 == 0 { 20_400 } else { i * 7_919 % columns }).collect(),
        weights: vec![1.0 / rows as f32; rows as usize],
    };
    let candidates = Candidates::Sampled {
        shift: (0..negatives).map(|i| (i % 7) as f32 * 0.1).collect(),
        excluded_offsets: (0..=rows).map(|i| 2 * i).collect(),
        excluded: (0..2 * rows).map(|i| i * 104_729 % columns).collect(),
        // Lists of 40 candidates, each shared by ten rows.
        certain_ranges: (0..rows).flat_map(|i| [i / 10 * 40, i / 10 * 40 + 40]).collect(),
        certain: (0..rows.div_ceil(10) * 40).map(|i| i * 611 % columns).collect(),
    };
    let name = format!("sampled softmax, {rows} × {negatives}");
    case(name, rows as usize, columns as usize, targets, candidates, 0.0);
    // Rows of that length without sampling, more than a kernel's group holds.
    let (rows, columns) = (300, 50_000);
    let targets = Targets {
        offsets: (0..=rows).collect(),
        candidates: (0..rows).map(|i| i * 7_919 % columns).collect(),
        weights: vec![1.0 / rows as f32; rows as usize],
    };
    let name = format!("full softmax, {rows} × {columns}");
    case(name, rows as usize, columns as usize, targets, Candidates::All, 0.0);
}

fn query_attentions(cases: &mut Vec<Case>) {
    let tokens: usize = LENGTHS.iter().sum();
    let fewer: Vec<u32> = LENGTHS.iter().flat_map(|&n| 0..n as u32).map(|i| i / 3 + 1).collect();
    for (keys, every, condition, columns, width) in [
        (None, 1, false, 4, 4),
        (None, 3, true, 4 + TIME_BUCKETS, 40),
        (Some(fewer.clone()), 2, false, 4, 64),
        (Some(fewer), 2, true, 4 + TIME_BUCKETS, 128),
    ] {
        let visible = if keys.is_some() { ", visible lengths" } else { "" };
        let layout = layout(&LENGTHS, keys);
        // Queries at every `every`-th token, two at even tokens; under a condition, every third token of a sequence matches.
        let mut queries = Queries { matches: condition.then(Vec::new), ..Queries::default() };
        for (token, i) in layout.positions().enumerate().filter(|(token, _)| token % every == 0) {
            for shift in 0..1 + usize::from(token % 2 == 0) {
                queries.tokens.push(token as u32);
                if let Some(matches) = &mut queries.matches {
                    matches.extend((0..=i).map(|j| (j + shift) % 3 == 0));
                }
            }
        }
        let (queries, d) = (Arc::new(queries), 2 * width);
        let inputs = vec![
            random((queries.tokens.len(), d), 1),
            random((tokens, 2 * d), 2),
            random((2, columns), 3),
            random(2, 4),
        ];
        let conditions = if condition { ", conditions" } else { "" };
        let name = format!("attention of single rows, 2 heads of {width}{visible}{conditions}");
        cases.push(Case::new(name, Precision::F32, inputs, move |t| {
            super::query_attention(&t[0], &t[1], (&t[2], &t[3]), (&layout, &queries), 4)
        }));
    }
}

/// Returns the layout of sequences of these lengths, with growing gaps between the times of their tokens.
pub(super) fn layout(lengths: &[usize], keys: Option<Vec<u32>>) -> Arc<AttentionLayout> {
    let mut offsets = vec![0];
    let mut times = Vec::new();
    for &n in lengths {
        offsets.push(offsets[offsets.len() - 1] + n);
        times.extend((0..n as i64).map(|i| i * i * 1_700));
    }
    Arc::new(AttentionLayout { offsets, times, keys })
}

/// Returns values in `[-1, 1)` on the CPU that depend on `seed` and the index alone.
pub(super) fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count() as u64)
        .map(|i| (schemas::hash::mix64(seed, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap_or_else(|error| unreachable!("as many values as the shape has: {error}"))
}

/// Returns `f(inputs)` and the gradients of a weighted sum of it, all copied to the CPU.
pub(super) fn results(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let (gradients, out) = differentiate(|| {
        let out = f(&tensors)?;
        Ok(((&out * weights(&out)?)?, out))
    })?;
    let gradient = |(i, var)| match gradients.get(var) {
        Some(gradient) => Ok(gradient.clone()),
        None => candle_core::bail!("no gradient of input {i}"),
    };
    let all = std::iter::once(Ok(out.detach())).chain(tensors.iter().enumerate().map(gradient));
    all.map(|t| t?.to_device(&Device::Cpu)).collect()
}

/// Returns the weights of the elements of `out` in the sum whose gradients are compared.
fn weights(out: &Tensor) -> Result<Tensor> {
    random(out.shape(), 9).to_device(out.device())
}

/// Returns the weighted sum of the elements of `out`.
fn weighted(out: &Tensor) -> Result<f64> {
    let products = (out * weights(out)?)?;
    Ok(values(&products)?.into_iter().map(f64::from).sum())
}

fn values(t: &Tensor) -> Result<Vec<f32>> {
    t.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// Returns the larger number, or NaN if either is NaN.
fn worst(a: f32, b: f32) -> f32 {
    if b.is_nan() || b > a { b } else { a }
}

/// Returns the largest difference, as a share of the largest absolute value of `expected`.
fn distance(ours: &Tensor, expected: &Tensor) -> Result<f32> {
    if ours.shape() != expected.shape() {
        candle_core::bail!("{:?} in place of {:?}", ours.shape(), expected.shape());
    }
    let (ours, expected) = (values(ours)?, values(expected)?);
    let largest = expected.iter().fold(0f32, |most, e| worst(most, e.abs()));
    let apart = ours.iter().zip(&expected).fold(0f32, |most, (o, e)| worst(most, (o - e).abs()));
    Ok(if apart == 0.0 { 0.0 } else { apart / largest.max(1e-6) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{emulator, with_kernels};

    #[test]
    fn emulated_kernels_agree() {
        if !emulator::there_is("emulated_kernels_agree") {
            return;
        }
        for case in cases() {
            let expected = case.results(&Device::Cpu).unwrap();
            let [emulated, shuffled] = [0, 0x5bd1_e995].map(|order| {
                emulator::in_order(order, || with_kernels(|| case.results(&Device::Cpu))).unwrap()
            });
            let agreement = case.agreement(&emulated, &expected).unwrap();
            println!("{agreement:?}");
            assert!(agreement.holds(), "{agreement:?}");
            for (one, other) in emulated.iter().zip(&shuffled) {
                assert_eq!(distance(one, other).unwrap(), 0.0, "{}: the order of threads matters", case.name);
            }
        }
    }

    #[test]
    fn gradients_of_the_cases_are_differences() {
        for agreement in compare(&Device::Cpu).unwrap() {
            assert!(agreement.holds(), "{agreement:?}");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_agrees() {
        let gpu = match Device::new_cuda_with_stream(0) {
            Ok(gpu) => gpu,
            Err(reason) => return testkit::skipped(&format!("a_gpu_agrees ({reason})"), "nvidia-smi"),
        };
        for agreement in compare(&gpu).unwrap() {
            assert!(agreement.holds(), "{agreement:?}");
        }
    }
}

// Softmax cross-entropy over many candidates, some rows of logits at a time: what a row's logits become is their gradient, which
// two matrix products then bring to the hidden states and the candidates.
#include "common.cuh"

// A block a row, from row `first` of the batch on. `logits` [rows, columns] become gradients, once more in `gradients` where that is not
// the same memory; `losses` [rows] become the rows' losses.
//
// Row `r` has the targets `offsets[r]..offsets[r + 1]`. Where `shift` is null, all columns compete; otherwise each row has one target at
// most, with which the first `negatives` columns compete, their logits shifted, but those of `excluded`
// (`excluded_offsets[r]..excluded_offsets[r + 1]`).
template <class T>
__device__ void cross_entropy_rows(float* logits, T* gradients, float* losses, const unsigned* offsets, const unsigned* targets,
                                   const float* weights, const float* shift, const unsigned* excluded_offsets,
                                   const unsigned* excluded, unsigned first, unsigned columns, unsigned negatives,
                                   float smoothing) {
    SHARED(float, scratch);
    const bool apart = static_cast<void*>(gradients) != static_cast<void*>(logits);
    T* out = gradients + size_t(blockIdx.x) * columns;
    float* row = logits + size_t(blockIdx.x) * columns;
    const unsigned r = first + blockIdx.x, from = offsets[r], to = offsets[r + 1];
    float weight = 0;
    for (unsigned i = from; i < to; ++i) weight += weights[i];
    if (weight == 0) {
        for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) out[c] = from_float<T>(0);
        if (threadIdx.x == 0) losses[blockIdx.x] = 0;
        return;
    }
    if (shift) {
        const unsigned target = targets[from];
        const float own = row[target];
        __syncthreads();
        for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) row[c] = c < negatives ? row[c] + shift[c] : -INFINITY;
        __syncthreads();
        for (unsigned i = excluded_offsets[r] + threadIdx.x; i < excluded_offsets[r + 1]; i += blockDim.x) {
            if (excluded[i] < columns) row[excluded[i]] = -INFINITY;
        }
        __syncthreads();
        if (threadIdx.x == 0) row[target] = own;
        __syncthreads();
    }
    float largest = -INFINITY, total = 0;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) {
        largest = fmaxf(largest, row[c]);
        if (smoothing > 0) total += row[c];
    }
    largest = block_max(largest, scratch);
    float sum = 0;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) sum += expf(row[c] - largest);
    sum = block_sum(sum, scratch);
    if (smoothing > 0) total = block_sum(total, scratch);
    if (threadIdx.x == 0) {
        float expected = smoothing > 0 ? smoothing * weight * total / columns : 0;
        for (unsigned i = from; i < to; ++i) expected += (1 - smoothing) * weights[i] * row[targets[i]];
        losses[blockIdx.x] = weight * (largest + logf(sum)) - expected;
    }
    // The targets' logits were read.
    __syncthreads();
    const float scale = weight / sum, uniform = smoothing * weight / columns;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) row[c] = expf(row[c] - largest) * scale - uniform;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned i = from; i < to; ++i) row[targets[i]] -= (1 - smoothing) * weights[i];
    }
    if (!apart) return;
    __syncthreads();
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) out[c] = from_float<T>(row[c]);
}

#define CROSS_ENTROPY_ROWS(T)                                                                                                \
    extern "C" __global__ void cross_entropy_rows_##T(                                                                       \
        float* logits, T* gradients, float* losses, const unsigned* offsets, const unsigned* targets, const float* weights,  \
        const float* shift, const unsigned* excluded_offsets, const unsigned* excluded, unsigned first, unsigned columns,    \
        unsigned negatives, float smoothing) {                                                                               \
        cross_entropy_rows(logits, gradients, losses, offsets, targets, weights, shift, excluded_offsets, excluded, first,   \
                           columns, negatives, smoothing);                                                                   \
    }                                                                                                                        \
    KERNEL(cross_entropy_rows_##T);
CROSS_ENTROPY_ROWS(float)
CROSS_ENTROPY_ROWS(bf16)

// `out` = Σ `values`, by one block. Shared: a double for each thread.
extern "C" __global__ void sum_all(const float* values, float* out, unsigned n) {
    SHARED(double, sums);
    const double sum = block_total(values, n, sums);
    if (threadIdx.x == 0) *out = sum;
}
KERNEL(sum_all);

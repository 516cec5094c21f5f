// Softmax cross-entropy over many candidates, some rows of logits at a time: what a row's logits become is their gradient, which
// two matrix products then bring to the hidden states and the candidates.
#include "common.cuh"

// Rows may have a target that does not compete with the others' (sampled softmax): its logit is computed apart, `own` [rows]. Row `r` has
// the targets `offsets[r]..offsets[r + 1]`, here one at most. A warp a row.
template <class T>
__device__ void own_logits(const T* hidden, const T* items, const unsigned* offsets, const unsigned* targets, float* own,
                           unsigned rows, unsigned d) {
    const unsigned r = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (r >= rows) return;
    float sum = 0;
    if (offsets[r] < offsets[r + 1]) {
        const T* item = items + size_t(targets[offsets[r]]) * d;
        for (unsigned column = threadIdx.x % WARP_SIZE; column < d; column += WARP_SIZE) {
            sum += to_float(hidden[size_t(r) * d + column]) * to_float(item[column]);
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP_SIZE == 0) own[r] = sum;
}

// `dhidden` += the gradients `own` [rows] of those logits times the targets' items.
template <class T>
__device__ void add_own(const float* own, const T* items, const unsigned* offsets, const unsigned* targets, float* dhidden,
                        unsigned rows, unsigned d) {
    const unsigned r = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (r >= rows || offsets[r] == offsets[r + 1]) return;
    const T* item = items + size_t(targets[offsets[r]]) * d;
    for (unsigned column = threadIdx.x % WARP_SIZE; column < d; column += WARP_SIZE) {
        dhidden[size_t(r) * d + column] += own[r] * to_float(item[column]);
    }
}

// A block a row, from row `first` of the batch on. `logits` [rows, columns], rows `pitch` apart, become gradients, once more in `gradients` where that is not
// the same memory; `losses` [rows] become the rows' losses.
//
// Row `r` has the targets `offsets[r]..offsets[r + 1]`. Where `own` is null, they are among the columns. Otherwise each row has one at
// most, whose logit is `own[r]`, which becomes its gradient; it competes with the columns, their logits shifted by `shift`, but not
// with itself and with those of `excluded` (`excluded_offsets[r]..excluded_offsets[r + 1]`).
template <class T>
__device__ void cross_entropy_rows(float* logits, T* gradients, float* losses, const unsigned* offsets, const unsigned* targets,
                                   const float* weights, float* own, const float* shift, const unsigned* excluded_offsets,
                                   const unsigned* excluded, unsigned first, unsigned columns, unsigned pitch, float smoothing) {
    SHARED(float, scratch);
    const bool apart = static_cast<void*>(gradients) != static_cast<void*>(logits);
    T* out = gradients + size_t(blockIdx.x) * pitch;
    float* row = logits + size_t(blockIdx.x) * pitch;
    const unsigned r = first + blockIdx.x, from = offsets[r], to = offsets[r + 1];
    float weight = 0;
    for (unsigned i = from; i < to; ++i) weight += weights[i];
    if (weight == 0) {
        for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) out[c] = from_float<T>(0);
        if (threadIdx.x == 0) {
            losses[blockIdx.x] = 0;
            if (own) own[r] = 0;
        }
        return;
    }
    const float own_logit = own ? own[r] : -INFINITY;
    if (own) {
        for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) row[c] += shift[c];
        __syncthreads();
        for (unsigned i = excluded_offsets[r] + threadIdx.x; i < excluded_offsets[r + 1]; i += blockDim.x) {
            if (excluded[i] < columns) row[excluded[i]] = -INFINITY;
        }
        if (threadIdx.x == 0 && targets[from] < columns) row[targets[from]] = -INFINITY;
        __syncthreads();
    }
    float largest = own_logit, total = 0;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) {
        largest = fmaxf(largest, row[c]);
        if (smoothing > 0) total += row[c];
    }
    largest = block_max(largest, scratch);
    float sum = 0;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) sum += expf(row[c] - largest);
    sum = block_sum(sum, scratch);
    if (own) sum += expf(own_logit - largest);
    if (smoothing > 0) total = block_sum(total, scratch);
    const float scale = weight / sum, uniform = smoothing * weight / columns;
    if (threadIdx.x == 0) {
        float expected = smoothing > 0 ? uniform * total : 0;
        for (unsigned i = from; i < to; ++i) expected += (1 - smoothing) * weights[i] * (own ? own_logit : row[targets[i]]);
        losses[blockIdx.x] = weight * (largest + logf(sum)) - expected;
        if (own) own[r] = expf(own_logit - largest) * scale - weight;
    }
    // The targets' logits were read.
    __syncthreads();
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) row[c] = expf(row[c] - largest) * scale - uniform;
    __syncthreads();
    if (threadIdx.x == 0 && !own) {
        for (unsigned i = from; i < to; ++i) row[targets[i]] -= (1 - smoothing) * weights[i];
    }
    if (!apart) return;
    __syncthreads();
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) out[c] = from_float<T>(row[c]);
}

#define CROSS_ENTROPY(T)                                                                                                     \
    extern "C" __global__ void own_logits_##T(const T* hidden, const T* items, const unsigned* offsets,                     \
                                              const unsigned* targets, float* own, unsigned rows, unsigned d) {              \
        own_logits(hidden, items, offsets, targets, own, rows, d);                                                           \
    }                                                                                                                        \
    KERNEL(own_logits_##T);                                                                                                  \
    extern "C" __global__ void add_own_##T(const float* own, const T* items, const unsigned* offsets,                       \
                                           const unsigned* targets, float* dhidden, unsigned rows, unsigned d) {             \
        add_own(own, items, offsets, targets, dhidden, rows, d);                                                             \
    }                                                                                                                        \
    KERNEL(add_own_##T);                                                                                                     \
    extern "C" __global__ void cross_entropy_rows_##T(                                                                       \
        float* logits, T* gradients, float* losses, const unsigned* offsets, const unsigned* targets, const float* weights,  \
        float* own, const float* shift, const unsigned* excluded_offsets, const unsigned* excluded, unsigned first,          \
        unsigned columns, unsigned pitch, float smoothing) {                                                                 \
        cross_entropy_rows(logits, gradients, losses, offsets, targets, weights, own, shift, excluded_offsets, excluded,     \
                           first, columns, pitch, smoothing);                                                                \
    }                                                                                                                        \
    KERNEL(cross_entropy_rows_##T);
CROSS_ENTROPY(float)
CROSS_ENTROPY(bf16)

// `out` = Σ `values`, by one block. Shared: a double for each thread.
extern "C" __global__ void sum_all(const float* values, float* out, unsigned n) {
    SHARED(double, sums);
    const double sum = block_total(values, n, sums);
    if (threadIdx.x == 0) *out = sum;
}
KERNEL(sum_all);

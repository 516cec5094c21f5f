// Softmax cross-entropy over many candidates, some rows of logits at a time: a row's logits become their gradients, which two
// matrix products then carry to the hidden states and the candidates.
#include "common.cuh"

// `own` [rows] receives the logits of the targets, computed apart because a target need not be a competitor (sampled softmax).
// Row `r` has the targets `offsets[r]..offsets[r + 1]`, here at most one. One warp per row.
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

// Groups of four numbers of a row that a thread holds at a time.
constexpr int GROUPS = 4;

// One block per row, from row `first` of the batch on. `logits` [rows, columns], rows `pitch` apart, become their gradients,
// numbers of type `T` from the start of the row on; `losses` [rows] receives the rows' losses. Rows of up to 16 columns per
// thread are read once, longer ones twice.
//
// Row `r` has the targets `offsets[r]..offsets[r + 1]`. If `own` is null, they are among the columns. Otherwise each row has at
// most one, with the logit `own[r]`, which becomes its gradient. It competes with the columns, except itself and those of
// `excluded` (`excluded_offsets[r]..excluded_offsets[r + 1]`). Their logits are shifted by `shift`, except those of `certain`
// (`certain_ranges[2 r]..certain_ranges[2 r + 1]`, each once).
template <class T>
__device__ void cross_entropy_rows(float* logits, float* losses, const unsigned* offsets, const unsigned* targets,
                                   const float* weights, float* own, const float* shift, const unsigned* excluded_offsets,
                                   const unsigned* excluded, const unsigned* certain_ranges, const unsigned* certain,
                                   unsigned first, unsigned columns, unsigned pitch, float smoothing) {
    SHARED(float, scratch);
    float* row = logits + size_t(blockIdx.x) * pitch;
    T* out = reinterpret_cast<T*>(row);
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
    // Weighted sum of the targets' logits, read before gradients overwrite the columns.
    float expected = weight * own_logit;
    if (own) {
        // Cancels `shift`, which is added to all columns below.
        for (unsigned i = certain_ranges[2 * size_t(r)] + threadIdx.x; i < certain_ranges[2 * size_t(r) + 1]; i += blockDim.x) {
            if (certain[i] < columns) row[certain[i]] -= shift[certain[i]];
        }
        __syncthreads();
        for (unsigned i = excluded_offsets[r] + threadIdx.x; i < excluded_offsets[r + 1]; i += blockDim.x) {
            if (excluded[i] < columns) row[excluded[i]] = -INFINITY;
        }
        if (threadIdx.x == 0 && targets[from] < columns) row[targets[from]] = -INFINITY;
        __syncthreads();
    } else if (threadIdx.x == 0) {
        expected = 0;
        for (unsigned i = from; i < to; ++i) expected += (1 - smoothing) * weights[i] * row[targets[i]];
    }

    Four held[GROUPS];
    const unsigned span = 4 * GROUPS * blockDim.x;
    const auto column = [](unsigned begin, int group) { return begin + 4 * (group * blockDim.x + threadIdx.x); };
    const auto load = [&](unsigned begin) {
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const unsigned c = column(begin, group);
            if (c < columns) held[group] = load_4(row, c, columns);
            const Four shifts = own && c < columns ? load_4(shift, c, columns) : Four{};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                held[group].values[i] = c + i < columns ? held[group].values[i] + shifts.values[i] : -INFINITY;
            }
        }
    };
    // Largest of this thread's logits so far, and the sum of exponentials relative to it; `held` turns from logits into
    // exponentials.
    float largest = -INFINITY, sum = 0, total = 0;
    const auto exponentials = [&] {
        // Without competitors there is nothing to subtract.
        const float base = largest == -INFINITY ? 0 : largest;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
            for (int i = 0; i < 4; ++i) held[group].values[i] = exponential(held[group].values[i] - base, T());
        }
    };
    for (unsigned begin = 0; begin < columns; begin += span) {
        load(begin);
        float most = largest;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float logit = held[group].values[i];
                most = fmaxf(most, logit);
                if (smoothing > 0 && column(begin, group) + i < columns) total += logit;
            }
        }
        if (sum > 0) sum *= exponential(largest - most, T());
        largest = most;
        exponentials();
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum += held[group].values[i];
        }
    }
    const float most = fmaxf(block_max(largest, scratch), own_logit);
    sum = block_sum(sum * exponential(largest - most, T()), scratch);
    if (own) sum += exponential(own_logit - most, T());
    if (smoothing > 0) total = block_sum(total, scratch);
    const float scale = weight / sum, uniform = smoothing * weight / columns;
    if (threadIdx.x == 0) {
        if (smoothing > 0) expected += uniform * total;
        losses[blockIdx.x] = weight * (most + logf(sum)) - expected;
        if (own) own[r] = exponential(own_logit - most, T()) * scale - weight;
    }
    const float factor = scale * exponential(largest - most, T());
    for (unsigned begin = 0; begin < columns; begin += span) {
        if (columns > span) {
            load(begin);
            exponentials();
            // Gradients are no wider than logits: they overwrite only logits that were read.
            __syncthreads();
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const unsigned c = column(begin, group);
            Four& gradient = held[group];
#pragma unroll
            for (int i = 0; i < 4; ++i) gradient.values[i] = gradient.values[i] * factor - uniform;
            for (unsigned target = from; !own && target < to; ++target) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (targets[target] == c + i) gradient.values[i] -= (1 - smoothing) * weights[target];
                }
            }
            store_4(out, c, columns, gradient);
        }
    }
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
        float* logits, float* losses, const unsigned* offsets, const unsigned* targets, const float* weights,  \
        float* own, const float* shift, const unsigned* excluded_offsets, const unsigned* excluded,                          \
        const unsigned* certain_ranges, const unsigned* certain, unsigned first, unsigned columns, unsigned pitch,           \
        float smoothing) {                                                                                                   \
        cross_entropy_rows<T>(logits, losses, offsets, targets, weights, own, shift, excluded_offsets, excluded,             \
                              certain_ranges, certain, first, columns, pitch, smoothing);                                    \
    }                                                                                                                        \
    KERNEL(cross_entropy_rows_##T);
CROSS_ENTROPY(float)
CROSS_ENTROPY(bf16)

// `out` = Σ `values`, by one block. Shared: a double per thread.
extern "C" __global__ void sum_all(const float* values, float* out, unsigned n) {
    SHARED(double, sums);
    const double sum = block_total(values, n, sums);
    if (threadIdx.x == 0) *out = sum;
}
KERNEL(sum_all);

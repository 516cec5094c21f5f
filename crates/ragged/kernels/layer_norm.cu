// Layer normalisation: γ (x − mean) / √(variance + ε) + β, one warp per row. A lane holds at most `A_LANE` columns, a row at most
// 32 times as many.
#include "common.cuh"

template <int A_LANE>
struct Row {
    float values[A_LANE];
    float mean, rstd;
};

template <int A_LANE>
__device__ __forceinline__ Row<A_LANE> load_row(const float* x, unsigned d, float epsilon) {
    Row<A_LANE> row;
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < A_LANE; ++k) {
        const unsigned column = k * WARP_SIZE + lane;
        row.values[k] = column < d ? x[column] : 0;
        sum += row.values[k];
    }
    row.mean = warp_sum(sum) / d;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < A_LANE; ++k) {
        const float apart = k * WARP_SIZE + lane < d ? row.values[k] - row.mean : 0;
        squares += apart * apart;
    }
    row.rstd = rsqrtf(warp_sum(squares) / d + epsilon);
    return row;
}

template <class T, int A_LANE>
__device__ void forward(const float* x, const float* gamma, const float* beta, T* y, unsigned rows, unsigned d, float epsilon) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const unsigned r = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (r >= rows) return;
    const Row<A_LANE> row = load_row<A_LANE>(x + size_t(r) * d, d, epsilon);
    T* out = y + size_t(r) * d;
#pragma unroll
    for (int k = 0; k < A_LANE; ++k) {
        const unsigned column = k * WARP_SIZE + lane;
        if (column < d) out[column] = from_float<T>((row.values[k] - row.mean) * row.rstd * gamma[column] + beta[column]);
    }
}

// `dx` becomes the gradient of `x`, plus `beside` unless null: the gradient that reaches `x` past the norm. `parts`
// [blocks, 2, d] receives each block's share of the gradients of γ and β. A block works through `a_block` rows. Shared: two
// floats per warp and column.
template <class T, int A_LANE>
__device__ void backward(const float* x, const float* gamma, const T* dy, const float* beside, float* dx, float* parts,
                         unsigned rows, unsigned d, unsigned a_block, float epsilon) {
    SHARED(float, sums);
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    const unsigned end = min(rows, (blockIdx.x + 1) * a_block);
    float dgamma[A_LANE] = {}, dbeta[A_LANE] = {};
    for (unsigned r = blockIdx.x * a_block + warp; r < end; r += warps) {
        const Row<A_LANE> row = load_row<A_LANE>(x + size_t(r) * d, d, epsilon);
        const T* of_dy = dy + size_t(r) * d;
        float scaled[A_LANE], sum = 0, product = 0;
#pragma unroll
        for (int k = 0; k < A_LANE; ++k) {
            const unsigned column = k * WARP_SIZE + lane;
            const float g = column < d ? to_float(of_dy[column]) : 0;
            const float normal = (row.values[k] - row.mean) * row.rstd;
            scaled[k] = column < d ? g * gamma[column] : 0;
            dgamma[k] += g * normal;
            dbeta[k] += g;
            sum += scaled[k];
            product += scaled[k] * normal;
        }
        sum = warp_sum(sum) / d;
        product = warp_sum(product) / d;
#pragma unroll
        for (int k = 0; k < A_LANE; ++k) {
            const unsigned column = k * WARP_SIZE + lane;
            if (column < d) {
                const size_t at = size_t(r) * d + column;
                const float normal = (row.values[k] - row.mean) * row.rstd;
                dx[at] = row.rstd * (scaled[k] - sum - normal * product) + (beside ? beside[at] : 0);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < A_LANE; ++k) {
        const unsigned column = k * WARP_SIZE + lane;
        if (column < d) {
            sums[warp * d + column] = dgamma[k];
            sums[(warps + warp) * d + column] = dbeta[k];
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 2 * d; i += blockDim.x) {
        float sum = 0;
        for (unsigned w = 0; w < warps; ++w) sum += sums[(i / d * warps + w) * d + i % d];
        parts[size_t(blockIdx.x) * 2 * d + i] = sum;
    }
}

#define LAYER_NORM(T, A_LANE)                                                                                                \
    extern "C" __global__ void layer_norm_##T##_##A_LANE(const float* x, const float* gamma, const float* beta, T* y,       \
                                                         unsigned rows, unsigned d, float epsilon) {                         \
        forward<T, A_LANE>(x, gamma, beta, y, rows, d, epsilon);                                                             \
    }                                                                                                                        \
    KERNEL(layer_norm_##T##_##A_LANE);                                                                                       \
    extern "C" __global__ void layer_norm_backward_##T##_##A_LANE(                                                           \
        const float* x, const float* gamma, const T* dy, const float* beside, float* dx, float* parts, unsigned rows,        \
        unsigned d, unsigned a_block, float epsilon) {                                                                       \
        backward<T, A_LANE>(x, gamma, dy, beside, dx, parts, rows, d, a_block, epsilon);                                     \
    }                                                                                                                        \
    KERNEL(layer_norm_backward_##T##_##A_LANE);
LAYER_NORM(float, 4)
LAYER_NORM(float, 8)
LAYER_NORM(float, 16)
LAYER_NORM(float, 32)
LAYER_NORM(bf16, 4)
LAYER_NORM(bf16, 8)
LAYER_NORM(bf16, 16)
LAYER_NORM(bf16, 32)

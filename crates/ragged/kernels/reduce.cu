// Sums in an order that does not depend on the device's schedule.
#include "common.cuh"

// Σ over `parts` parts of `stride` elements each, for columns `from` to `from` + `width` of rows `pitch` apart: `n` elements in
// all. A block computes 32 of them; its warps share the parts. Shared: a float per thread.
extern "C" __global__ void sum_parts(const float* values, float* out, unsigned parts, unsigned stride, unsigned pitch,
                                     unsigned from, unsigned width, unsigned n) {
    SHARED(float, sums);
    const unsigned lane = threadIdx.x % WARP_SIZE, warps = blockDim.x / WARP_SIZE, i = blockIdx.x * WARP_SIZE + lane;
    float sum = 0;
    if (i < n) {
        const size_t at = size_t(i / width) * pitch + from + i % width;
#pragma unroll 16
        for (unsigned part = threadIdx.x / WARP_SIZE; part < parts; part += warps) sum += values[size_t(part) * stride + at];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= WARP_SIZE || i >= n) return;
    for (unsigned warp = 1; warp < warps; ++warp) sum += sums[warp * WARP_SIZE + lane];
    out[i] = sum;
}
KERNEL(sum_parts);

// `parts` [blocks, columns] receives, per block, the column sums of its `a_block` rows of `x` [rows, columns]. One thread per
// column; columns beyond a block's threads are in further blocks along y.
template <class T>
__device__ void column_sums(const T* x, float* parts, unsigned rows, unsigned columns, unsigned a_block) {
    const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const unsigned end = min(rows, (blockIdx.x + 1) * a_block);
    float sum = 0;
#pragma unroll 8
    for (unsigned row = blockIdx.x * a_block; row < end; ++row) sum += to_float(x[size_t(row) * columns + column]);
    parts[size_t(blockIdx.x) * columns + column] = sum;
}

#define COLUMN_SUMS(T)                                                                                                       \
    extern "C" __global__ void column_sums_##T(const T* x, float* parts, unsigned rows, unsigned columns,                   \
                                               unsigned a_block) {                                                           \
        column_sums(x, parts, rows, columns, a_block);                                                                       \
    }                                                                                                                        \
    KERNEL(column_sums_##T);
COLUMN_SUMS(float)
COLUMN_SUMS(bf16)

// `out[first + block]` = Σ x² over the block's share of `x`. Shared: a double per thread.
extern "C" __global__ void sum_of_squares(const float* x, double* out, unsigned first, unsigned n) {
    SHARED(double, sums);
    double sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        sum += double(x[i]) * x[i];
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) out[first + blockIdx.x] = sum;
}
KERNEL(sum_of_squares);

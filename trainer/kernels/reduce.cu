// Sums whose order does not depend on what the device does first.
#include "common.cuh"

// Σ over `parts` parts of `stride` elements each, of which columns `from` to `from` + `width` of rows `pitch` apart are wanted: `n`
// elements in all.
extern "C" __global__ void sum_parts(const float* values, float* out, unsigned parts, unsigned stride, unsigned pitch,
                                     unsigned from, unsigned width, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const size_t at = size_t(i / width) * pitch + from + i % width;
    float sum = 0;
    for (unsigned part = 0; part < parts; ++part) sum += values[size_t(part) * stride + at];
    out[i] = sum;
}
KERNEL(sum_parts);

// `out[first + block]` = Σ x² over the block's share of `x`. Shared: a double for each thread.
extern "C" __global__ void sum_of_squares(const float* x, double* out, unsigned first, unsigned n) {
    SHARED(double, sums);
    double sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        sum += double(x[i]) * x[i];
    }
    sums[threadIdx.x] = sum;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[first + blockIdx.x] = sums[0];
}
KERNEL(sum_of_squares);

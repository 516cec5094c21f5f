// What goes through tensors element by element.
#include "common.cuh"

// Elements that share a key in dropout; see `ops::dropout`.
constexpr unsigned CHUNK = 1 << 14;

__device__ __forceinline__ uint64_t mix_64(uint64_t seed, uint64_t value) {
    uint64_t z = seed + value * 0x9e3779b97f4a7c15ull + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ __forceinline__ uint32_t mix_32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// Dropout that follows from a seed and the place of an element alone: the same elements as on the CPU, and no mask in memory.
// `out` = `x` + dropout(`y`), or dropout(`y`) where `x` is null, for `n` elements. What falls below `threshold` is dropped, the rest
// multiplied with `scale`.
extern "C" __global__ void add_dropped(const float* x, const float* y, float* out, unsigned n, unsigned seed_high,
                                       unsigned seed_low, unsigned threshold, float scale) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint64_t seed = uint64_t(seed_high) << 32 | seed_low;
    const uint32_t key = uint32_t(mix_64(seed, i / CHUNK)) + i % CHUNK;
    const float kept = mix_32(key) >= threshold ? y[i] * scale : 0;
    out[i] = x ? x[i] + kept : kept;
}
KERNEL(add_dropped);

// `out` = `x` times the number at `factor`, which the CPU need not know.
extern "C" __global__ void scale(const float* x, const float* factor, float* out, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * *factor;
}
KERNEL(scale);

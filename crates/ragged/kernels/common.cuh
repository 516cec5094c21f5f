// Shared parts of the kernels: number types, sums over a warp or a block, and products of small matrices on tensor cores.
//
// A kernel is an `extern "C"` function, so that PTX holds it under its own name; it takes pointers, 32-bit integers and floats,
// in the order in which the launching Rust code passes them. Sums are in a fixed order: equal input gives equal output, to the
// last bit.
#pragma once

#ifdef EMULATED
#include "emulator.hpp"
#else
#include <cstdint>
#include <cuda_bf16.h>
#define KERNEL(name)
// One declaration for all kernels: dynamic shared memory has a single name.
extern __shared__ __align__(16) unsigned char shared_memory[];
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shared_memory)
#endif

using bf16 = __nv_bfloat16;

constexpr unsigned WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

__device__ __forceinline__ float to_float(float x) {
    return x;
}

__device__ __forceinline__ float to_float(bf16 x) {
    return __bfloat162float(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16(x);
}

// eˣ, as exact as numbers of the second argument's type.
__device__ __forceinline__ float exponential(float x, float) {
    return expf(x);
}

__device__ __forceinline__ float exponential(float x, bf16) {
    return __expf(x);
}

__device__ __forceinline__ uint32_t bits_of(bf16 x) {
    uint16_t bits;
    memcpy(&bits, &x, 2);
    return bits;
}

// Four consecutive numbers.
struct Four {
    float values[4];
};

// Loads or stores a vector at once; its address is a multiple of its size.
template <class V>
__device__ __forceinline__ V load_vector(const void* from) {
#ifdef EMULATED
    emulator::must_be_aligned(from, sizeof(V));
#endif
    return *static_cast<const V*>(from);
}

template <class V>
__device__ __forceinline__ void store_vector(void* to, V vector) {
#ifdef EMULATED
    emulator::must_be_aligned(to, sizeof(V));
#endif
    *static_cast<V*>(to) = vector;
}

// Copies 16 bytes; zeros where `from` is null.
__device__ __forceinline__ void copy_16(void* to, const void* from) {
    store_vector(to, from ? load_vector<uint4>(from) : uint4{0, 0, 0, 0});
}

__device__ __forceinline__ Four load_4(const float* from) {
    const float4 all = load_vector<float4>(from);
    return {{all.x, all.y, all.z, all.w}};
}

__device__ __forceinline__ Four load_4(const bf16* from) {
    const uint2 all = load_vector<uint2>(from);
    return {{__uint_as_float(all.x << 16), __uint_as_float(all.x & 0xffff0000), __uint_as_float(all.y << 16),
             __uint_as_float(all.y & 0xffff0000)}};
}

__device__ __forceinline__ void store_4(float* to, const Four& four) {
    const float* x = four.values;
    store_vector(to, float4{x[0], x[1], x[2], x[3]});
}

__device__ __forceinline__ void store_4(bf16* to, const Four& four) {
    const float* x = four.values;
    store_vector(to, uint2{bits_of(from_float<bf16>(x[0])) | bits_of(from_float<bf16>(x[1])) << 16,
                           bits_of(from_float<bf16>(x[2])) | bits_of(from_float<bf16>(x[3])) << 16});
}

// Loads four of the `n` numbers at `from`, an aligned address, from number `first` on, a multiple of four; zeros beyond the last.
template <class T>
__device__ __forceinline__ Four load_4(const T* from, size_t first, size_t n) {
    if (first + 4 <= n) return load_4(from + first);
    Four four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = first + i < n ? to_float(from[first + i]) : 0;
    return four;
}

template <class T>
__device__ __forceinline__ void store_4(T* to, size_t first, size_t n, const Four& four) {
    if (first + 4 <= n) return store_4(to + first, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (first + i < n) to[first + i] = from_float<T>(four.values[i]);
    }
}

// Returns the sum over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
    return x;
}

// Returns the maximum over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_max(float x) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, mask));
    return x;
}

// Writes a float of each warp of a block to `scratch`, for every thread to read. Returns the number of warps.
__device__ __forceinline__ unsigned share_of_warps(float of_warp, float* scratch) {
    // Earlier values may still be read.
    __syncthreads();
    if (threadIdx.x % WARP_SIZE == 0) scratch[threadIdx.x / WARP_SIZE] = of_warp;
    __syncthreads();
    return blockDim.x / WARP_SIZE;
}

// Returns the sum over a block of whole warps, in every thread. `scratch` has room for a float per warp.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const unsigned warps = share_of_warps(warp_sum(x), scratch);
    float sum = 0;
    for (unsigned w = 0; w < warps; ++w) sum += scratch[w];
    return sum;
}

// Returns the maximum over a block of whole warps, in every thread. `scratch` has room for a float per warp.
__device__ __forceinline__ float block_max(float x, float* scratch) {
    const unsigned warps = share_of_warps(warp_max(x), scratch);
    float most = scratch[0];
    for (unsigned w = 1; w < warps; ++w) most = fmaxf(most, scratch[w]);
    return most;
}

// Returns the sum over a block, in thread 0; the block's size is a power of two. `sums` has room for a double per thread.
__device__ __forceinline__ double block_sum(double x, double* sums) {
    sums[threadIdx.x] = x;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return sums[0];
}

// Returns the sum of the `n` numbers at `from`, computed by one block, in thread 0.
template <class T>
__device__ __forceinline__ double block_total(const T* from, unsigned n, double* sums) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += from[i];
    return block_sum(sum, sums);
}

// Fragments of a warp's matrix product, 16×16 times 16×8. Lane `l` holds, with `g = l / 4` and `t = 2 (l % 4)`,
//   of A  rows g, g + 8 and columns t, t + 1, t + 8, t + 9, in the order (g; t, t+1), (g+8; t, t+1), (g; t+8, t+9), (g+8; …),
//   of B  rows t, t + 1, t + 8, t + 9 of column g,
//   of C  rows g, g + 8 and columns t, t + 1, in the order (g; t), (g; t+1), (g+8; t), (g+8; t+1).
// Two adjacent Cs thus form an A: one product's results are the next one's operand.
template <class T>
struct FragmentA;
template <class T>
struct FragmentB;

template <>
struct FragmentA<bf16> {
    uint32_t pairs[4];
};
template <>
struct FragmentB<bf16> {
    uint32_t pairs[2];
};
template <>
struct FragmentA<float> {
    float values[8];
};
template <>
struct FragmentB<float> {
    float values[4];
};

struct FragmentC {
    float values[4] = {0, 0, 0, 0};
};

// Sets values 2 `pair` and 2 `pair` + 1 of a fragment.
__device__ __forceinline__ void set(FragmentA<bf16>& a, int pair, float x, float y) {
    a.pairs[pair] = bits_of(__float2bfloat16(x)) | bits_of(__float2bfloat16(y)) << 16;
}
__device__ __forceinline__ void set(FragmentA<float>& a, int pair, float x, float y) {
    a.values[2 * pair] = x;
    a.values[2 * pair + 1] = y;
}
__device__ __forceinline__ void set(FragmentA<bf16>& a, int pair, bf16 x, bf16 y) {
    a.pairs[pair] = bits_of(x) | bits_of(y) << 16;
}
__device__ __forceinline__ void set(FragmentB<bf16>& b, int pair, bf16 x, bf16 y) {
    b.pairs[pair] = bits_of(x) | bits_of(y) << 16;
}
__device__ __forceinline__ void set(FragmentB<float>& b, int pair, float x, float y) {
    b.values[2 * pair] = x;
    b.values[2 * pair + 1] = y;
}

#ifdef EMULATED

struct Operands {
    float a[8], b[4];
};

inline FragmentC product_of(const Operands& mine, FragmentC c) {
    const auto slots = emulator::exchange(mine);
    const unsigned lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4 * 2;
    for (int value = 0; value < 4; ++value) {
        const unsigned row = g + value / 2 * 8, column = t + value % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const auto a = emulator::of_lane<Operands>(slots, row % 8 * 4 + k % 8 / 2);
            const auto b = emulator::of_lane<Operands>(slots, column * 4 + k % 8 / 2);
            c.values[value] += a.a[k / 8 * 4 + row / 8 * 2 + k % 2] * b.b[k / 8 * 2 + k % 2];
        }
    }
    return c;
}

inline float half_of(uint32_t pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000 : pair << 16);
}

// Returns C + A B.
inline FragmentC product(const FragmentA<bf16>& a, const FragmentB<bf16>& b, const FragmentC& c) {
    Operands mine;
    for (int i = 0; i < 8; ++i) mine.a[i] = half_of(a.pairs[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) mine.b[i] = half_of(b.pairs[i / 2], i % 2);
    return product_of(mine, c);
}

inline FragmentC product(const FragmentA<float>& a, const FragmentB<float>& b, const FragmentC& c) {
    Operands mine;
    memcpy(mine.a, a.values, sizeof mine.a);
    memcpy(mine.b, b.values, sizeof mine.b);
    return product_of(mine, c);
}

#else

// Returns C + A B.
__device__ __forceinline__ FragmentC product(const FragmentA<bf16>& a, const FragmentB<bf16>& b, FragmentC c) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.pairs[0]), "r"(b.pairs[1]));
    return c;
}

__device__ __forceinline__ uint32_t tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// Multiplies 32-bit floats as three pairs of TF32 numbers: the leading parts, and each leading part with the other's remainder.
// Takes eight columns of A at a time, in any order on which A and B agree.
__device__ __forceinline__ FragmentC product(const FragmentA<float>& a, const FragmentB<float>& b, FragmentC c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float* of_a = a.values + 4 * half;
        const float* of_b = b.values + 2 * half;
        // (g; t), (g+8; t), (g; t+1), (g+8; t+1)
        const float x[4] = {of_a[0], of_a[2], of_a[1], of_a[3]};
        uint32_t lead[4], rest[4], lead_b[2], rest_b[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            lead[i] = tf32(x[i]);
            rest[i] = tf32(x[i] - __uint_as_float(lead[i]));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            lead_b[i] = tf32(of_b[i]);
            rest_b[i] = tf32(of_b[i] - __uint_as_float(lead_b[i]));
        }
#pragma unroll
        for (int part = 0; part < 3; ++part) {
            const uint32_t* p = part == 0 ? rest : lead;
            const uint32_t* q = part == 1 ? rest_b : lead_b;
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
                : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
        }
    }
    return c;
}

#endif

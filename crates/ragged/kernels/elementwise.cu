// Element-wise operations, four elements per thread.
#include "common.cuh"

// Elements that share a key in dropout; see `src/dropout.rs`.
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

// Returns the first of the four elements of this thread.
__device__ __forceinline__ unsigned first_element() {
    return 4 * (blockIdx.x * blockDim.x + threadIdx.x);
}

// Column numbers of consecutive elements, row after row.
struct Column {
    unsigned at, columns;

    __device__ Column(unsigned first, unsigned columns) : at(first % columns), columns(columns) {}

    __device__ __forceinline__ unsigned next() {
        const unsigned now = at;
        if (++at == columns) at = 0;
        return now;
    }
};

// `out` = `x` + dropout(`y` + `bias`) for `n` elements in rows of `columns`; a null `x` or `bias` adds nothing. The seed and an
// element's index alone decide whether it is dropped: the same elements as on the CPU, without a mask in memory. Elements whose
// random number is below `threshold` are dropped, the others multiplied by `scale`.
template <class Y, class Out>
__device__ void add_dropped(const float* x, const Y* y, const float* bias, Out* out, unsigned n, unsigned columns,
                            unsigned seed_high, unsigned seed_low, unsigned threshold, float scale) {
    const unsigned first = first_element();
    if (first >= n) return;
    const uint64_t seed = uint64_t(seed_high) << 32 | seed_low;
    const uint32_t key = uint32_t(mix_64(seed, first / CHUNK)) + first % CHUNK;
    Four four = load_4(y, first, n);
    const Four added = x ? load_4(x, first, n) : Four{};
    Column column(first, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float& value = four.values[i];
        if (bias) value += bias[column.next()];
        value = added.values[i] + (mix_32(key + i) >= threshold ? value * scale : 0);
    }
    store_4(out, first, n, four);
}

#define ADD_DROPPED(Y, OUT)                                                                                                  \
    extern "C" __global__ void add_dropped_##Y##_##OUT(const float* x, const Y* y, const float* bias, OUT* out, unsigned n, \
                                                       unsigned columns, unsigned seed_high, unsigned seed_low,              \
                                                       unsigned threshold, float scale) {                                   \
        add_dropped(x, y, bias, out, n, columns, seed_high, seed_low, threshold, scale);                                     \
    }                                                                                                                        \
    KERNEL(add_dropped_##Y##_##OUT);
// Forward to float, backward from float.
ADD_DROPPED(float, float)
ADD_DROPPED(bf16, float)
ADD_DROPPED(float, bf16)

// `out` = `x`, rounded to 16 bits. `x` may be unaligned.
extern "C" __global__ void halves(const float* x, bf16* out, unsigned n) {
    const unsigned first = first_element();
    if (reinterpret_cast<uintptr_t>(x) % sizeof(float4) == 0) {
        if (first < n) store_4(out, first, n, load_4(x, first, n));
        return;
    }
    for (unsigned i = first; i < min(n, first + 4); ++i) out[i] = from_float<bf16>(x[i]);
}
KERNEL(halves);

// `x` += `y`.
extern "C" __global__ void add(const float* y, float* x, unsigned n) {
    const unsigned first = first_element();
    if (first >= n) return;
    Four sum = load_4(x, first, n);
    const Four more = load_4(y, first, n);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.values[i] += more.values[i];
    store_4(x, first, n, sum);
}
KERNEL(add);

// `out` = `x` times the number at `factor`, which stays on the device.
extern "C" __global__ void scale(const float* x, const float* factor, float* out, unsigned n) {
    const unsigned first = first_element();
    if (first >= n) return;
    Four four = load_4(x, first, n);
    for (float& value : four.values) value *= *factor;
    store_4(out, first, n, four);
}
KERNEL(scale);

// GELU in its tanh form, `x · σ(2 √(2/π) (x + 0.044715 x³))`, and its derivative, as in `src/activation.rs`.
struct Gelu {
    float value, slope;
};

__device__ __forceinline__ Gelu gelu(float x) {
    const float a = 0.7978846f, b = 0.044715f;
    const float g = 1 / (1 + expf(-2 * a * (b * x * x * x + x)));
    return {x * g, g + x * g * (1 - g) * 2 * a * (3 * b * x * x + 1)};
}

// `active` = GELU(`inner` + `bias`) for `n` elements in rows of `columns`.
template <class T>
__device__ void bias_gelu(const T* inner, const float* bias, T* active, unsigned n, unsigned columns) {
    const unsigned first = first_element();
    if (first >= n) return;
    Four four = load_4(inner, first, n);
    Column column(first, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = gelu(four.values[i] + bias[column.next()]).value;
    store_4(active, first, n, four);
}

// As `bias_gelu`; also turns `gradient` from that of `active` into that of `inner` + `bias`.
template <class T>
__device__ void bias_gelu_backward(const T* inner, const float* bias, T* active, T* gradient, unsigned n, unsigned columns) {
    const unsigned first = first_element();
    if (first >= n) return;
    Four four = load_4(inner, first, n), slopes = load_4(gradient, first, n);
    Column column(first, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Gelu at = gelu(four.values[i] + bias[column.next()]);
        four.values[i] = at.value;
        slopes.values[i] *= at.slope;
    }
    store_4(active, first, n, four);
    store_4(gradient, first, n, slopes);
}

#define BIAS_GELU(T)                                                                                                         \
    extern "C" __global__ void bias_gelu_##T(const T* inner, const float* bias, T* active, unsigned n, unsigned columns) {  \
        bias_gelu(inner, bias, active, n, columns);                                                                          \
    }                                                                                                                        \
    KERNEL(bias_gelu_##T);                                                                                                   \
    extern "C" __global__ void bias_gelu_backward_##T(const T* inner, const float* bias, T* active, T* gradient, unsigned n, \
                                                      unsigned columns) {                                                    \
        bias_gelu_backward(inner, bias, active, gradient, n, columns);                                                       \
    }                                                                                                                        \
    KERNEL(bias_gelu_backward_##T);
BIAS_GELU(float)
BIAS_GELU(bf16)

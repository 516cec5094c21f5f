// Shared parts of attention over ragged sequences: the batch, and the time buckets.
#pragma once

#include "common.cuh"

constexpr unsigned TIME_BUCKETS = 64;
// Threads of a block.
constexpr unsigned BLOCK = 128;
constexpr float NEVER = -INFINITY;

// The batch. `keys` is null for causal attention; `columns` are those of `bias`: `max_distance`, and TIME_BUCKETS more with a
// time bias.
struct Batch {
    const unsigned* offsets;
    const long long* times;
    const unsigned* keys;
    const float* bias;
    const float* log_temperature;
    unsigned heads, width, max_distance, columns;
};

// As `time_bucket` in `src/ragged.rs`: two buckets an octave of 1 + seconds, and one for the first key.
__device__ __forceinline__ unsigned time_bucket(long long later, long long earlier, unsigned key) {
    if (key == 0) return 0;
    const long long apart = later - earlier;
    const float seconds = float(apart > 0 ? apart : 0) / 1000.0f;
    const unsigned half_octaves = (__float_as_uint(seconds + 1.0f) >> 22) - (127 << 1);
    return min(1 + half_octaves, TIME_BUCKETS - 1);
}

// Splits shared memory into pieces.
struct Pieces {
    unsigned char* at;

    template <class T>
    __device__ T* take(unsigned n) {
        T* piece = reinterpret_cast<T*>(at);
        // Every piece begins at a multiple of 16 bytes.
        at += (n * sizeof(T) + 15) / 16 * 16;
        return piece;
    }
};

#define BATCH_PARAMETERS                                                                                                     \
    const unsigned *offsets, const long long *times, const unsigned *keys, const float *bias, const float *log_temperature, \
        unsigned heads, unsigned width, unsigned max_distance, unsigned columns
#define BATCH \
    Batch { offsets, times, keys, bias, log_temperature, heads, width, max_distance, columns }

// Self-attention over ragged sequences, causal or with a number of visible keys per row, with learned position and time biases
// and a temperature per head. Scores never reach global memory: a block passes over tiles of 64 keys, and each row keeps its
// largest score and its normaliser (online softmax; Dao 2023, FlashAttention-2). The backward pass recomputes the scores from
// `log Σ exp`.
//
//     s_ij = q_i · k_j / T_h + b_pos(min(i − j, P − 1)) + b_time(bucket(τ_i − τ_j))
//
// Queries, keys and values are interleaved, [tokens, 3, heads, width]; the output is [tokens, heads, width].
#pragma once

#include "attention.cuh"

// Rows and keys of a tile; a block has four warps, each with 16 rows.
constexpr int TILE = 64;

// Tile of rows in shared memory, padded so that adjacent rows begin in different banks.
template <class T, int D>
struct Tile {
    static constexpr int STRIDE = D + 16 / sizeof(T);
    static constexpr unsigned BYTES = TILE * STRIDE * sizeof(T);
    T* data;

    // Loads rows `from` to `from` + 64 of the `n` rows at `source`, `width` wide; zeros beyond them.
    __device__ void load(const T* source, size_t stride, unsigned width, unsigned from, unsigned n) {
        constexpr int VECTOR = 16 / sizeof(T);
        if (width == D) {
            for (unsigned i = threadIdx.x; i < TILE * D / VECTOR; i += BLOCK) {
                const unsigned row = i / (D / VECTOR), column = i % (D / VECTOR) * VECTOR;
                copy_16(data + row * STRIDE + column, from + row < n ? source + (from + row) * stride + column : nullptr);
            }
        } else {
            for (unsigned i = threadIdx.x; i < TILE * D; i += BLOCK) {
                const unsigned row = i / D, column = i % D;
                const bool inside = from + row < n && column < width;
                data[row * STRIDE + column] = inside ? source[(from + row) * stride + column] : from_float<T>(0);
            }
        }
    }

    // Returns rows `row` to `row` + 16 and columns `column` to `column` + 16 as the left operand of a product.
    __device__ __forceinline__ FragmentA<T> left(unsigned row, unsigned column) const {
        const unsigned lane = threadIdx.x % WARP_SIZE;
        const T* at = data + (row + lane / 4) * STRIDE + column + lane % 4 * 2;
        FragmentA<T> a;
        set(a, 0, at[0], at[1]);
        set(a, 1, at[8 * STRIDE], at[8 * STRIDE + 1]);
        set(a, 2, at[8], at[9]);
        set(a, 3, at[8 * STRIDE + 8], at[8 * STRIDE + 9]);
        return a;
    }

    // Returns the transpose of rows `row` to `row` + 8 and columns `column` to `column` + 16 as the right operand.
    __device__ __forceinline__ FragmentB<T> right_transposed(unsigned row, unsigned column) const {
        const unsigned lane = threadIdx.x % WARP_SIZE;
        const T* at = data + (row + lane / 4) * STRIDE + column + lane % 4 * 2;
        FragmentB<T> b;
        set(b, 0, at[0], at[1]);
        set(b, 1, at[8], at[9]);
        return b;
    }

    // Returns rows `row` to `row` + 16 and columns `column` to `column` + 8 as the right operand.
    __device__ __forceinline__ FragmentB<T> right(unsigned row, unsigned column) const {
        const unsigned lane = threadIdx.x % WARP_SIZE;
        const T* at = data + (row + lane % 4 * 2) * STRIDE + column + lane / 4;
        FragmentB<T> b;
        set(b, 0, at[0], at[STRIDE]);
        set(b, 1, at[8 * STRIDE], at[9 * STRIDE]);
        return b;
    }
};

// Returns two adjacent results as the left operand of the next product.
template <class T>
__device__ __forceinline__ FragmentA<T> as_left(const FragmentC& c, const FragmentC& next) {
    FragmentA<T> a;
    set(a, 0, c.values[0], c.values[1]);
    set(a, 1, c.values[2], c.values[3]);
    set(a, 2, next.values[0], next.values[1]);
    set(a, 3, next.values[2], next.values[3]);
    return a;
}

// Maximum and sum over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Times and visible lengths of 64 rows, or of 64 keys, for all threads.
struct Rows {
    long long* times;
    unsigned* visible;

    // Loads rows from `from` on of the sequence of `n` tokens that begins at `start`. Rows beyond its end see nothing.
    __device__ void load(const Batch& batch, unsigned start, unsigned from, unsigned n) {
        for (unsigned i = threadIdx.x; i < TILE; i += BLOCK) {
            const unsigned row = from + i;
            times[i] = row < n ? batch.times[start + row] : 0;
            visible[i] = row >= n ? 0 : batch.keys ? batch.keys[start + row] : row + 1;
        }
    }

    __device__ unsigned most_visible() const {
        unsigned most = 0;
        for (int i = 0; i < TILE; ++i) most = max(most, visible[i]);
        return most;
    }
};

// One block computes a tile of rows of one head: `work` [blocks, 2] holds the sequence and the tile. `log_sum` is
// [tokens, heads].
template <class T, int D>
__device__ void forward(const T* qkv, T* out, float* log_sum, const unsigned* work, const Batch& batch) {
    SHARED(unsigned char, memory);
    Pieces pieces{memory};
    Tile<T, D> keys{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Tile<T, D> values{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Rows rows{pieces.take<long long>(TILE), pieces.take<unsigned>(TILE)};
    Rows of_keys{pieces.take<long long>(TILE), pieces.take<unsigned>(TILE)};
    float* bias = pieces.take<float>(batch.columns);

    const unsigned head = blockIdx.y, sequence = work[2 * blockIdx.x], first = work[2 * blockIdx.x + 1] * TILE;
    const unsigned start = batch.offsets[sequence], n = batch.offsets[sequence + 1] - start;
    const unsigned d = batch.heads * batch.width;
    const float scale = expf(-batch.log_temperature[head]);
    const bool timed = batch.columns > batch.max_distance;
    const unsigned lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4 * 2;
    const unsigned own = threadIdx.x / WARP_SIZE * 16;
    const T* base = qkv + size_t(start) * 3 * d + head * batch.width;

    for (unsigned i = threadIdx.x; i < batch.columns; i += BLOCK) bias[i] = batch.bias[head * batch.columns + i];
    rows.load(batch, start, first, n);
    // Queries pass through the keys' memory into registers.
    keys.load(base, 3 * d, batch.width, first, n);
    __syncthreads();
    FragmentA<T> query[D / 16];
#pragma unroll
    for (int k = 0; k < D / 16; ++k) query[k] = keys.left(own, 16 * k);
    const unsigned end = rows.most_visible();

    FragmentC result[D / 8];
    float largest[2] = {NEVER, NEVER}, sum[2] = {0, 0};
    for (unsigned from = 0; from < end; from += TILE) {
        __syncthreads();
        keys.load(base + d, 3 * d, batch.width, from, n);
        values.load(base + 2 * d, 3 * d, batch.width, from, n);
        of_keys.load(batch, start, from, n);
        __syncthreads();
        FragmentC scores[TILE / 8];
        float now[2] = {largest[0], largest[1]};
#pragma unroll
        for (int block = 0; block < TILE / 8; ++block) {
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                scores[block] = product(query[k], keys.right_transposed(8 * block, 16 * k), scores[block]);
            }
#pragma unroll
            for (int value = 0; value < 4; ++value) {
                const unsigned row = own + g + value / 2 * 8, column = 8 * block + t + value % 2;
                const unsigned i = first + row, j = from + column;
                float& score = scores[block].values[value];
                if (j < rows.visible[row]) {
                    score = score * scale + bias[min(i - j, batch.max_distance - 1)];
                    if (timed) score += bias[batch.max_distance + time_bucket(rows.times[row], of_keys.times[column], j)];
                } else {
                    score = NEVER;
                }
                now[value / 2] = fmaxf(now[value / 2], score);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            now[half] = quad_max(now[half]);
            // A row that has seen no key has nothing to rescale.
            const float shrink = largest[half] == NEVER ? 0 : exponential(largest[half] - now[half], T());
            sum[half] *= shrink;
#pragma unroll
            for (int k = 0; k < D / 8; ++k) {
                result[k].values[2 * half] *= shrink;
                result[k].values[2 * half + 1] *= shrink;
            }
            largest[half] = now[half];
        }
#pragma unroll
        for (int block = 0; block < TILE / 8; ++block) {
#pragma unroll
            for (int value = 0; value < 4; ++value) {
                float& weight = scores[block].values[value];
                weight = weight == NEVER ? 0 : exponential(weight - largest[value / 2], T());
                sum[value / 2] += weight;
            }
        }
#pragma unroll
        for (int block = 0; block < TILE / 8; block += 2) {
            const FragmentA<T> weights = as_left<T>(scores[block], scores[block + 1]);
#pragma unroll
            for (int k = 0; k < D / 8; ++k) result[k] = product(weights, values.right(8 * block, 8 * k), result[k]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[half]);
        const unsigned row = first + own + g + 8 * half;
        if (row >= n) continue;
#pragma unroll
        for (int k = 0; k < D / 8; ++k) {
#pragma unroll
            for (int value = 0; value < 2; ++value) {
                const unsigned column = 8 * k + t + value;
                if (column >= batch.width) continue;
                out[size_t(start + row) * d + head * batch.width + column] =
                    from_float<T>(result[k].values[2 * half + value] / total);
            }
        }
        if (t == 0) log_sum[size_t(start + row) * batch.heads + head] = largest[half] + logf(total);
    }
}

// `delta` [tokens, heads] = Σ dout · out over the width of a head, which the gradient of each score of the row subtracts. One
// warp per row and head.
template <class T>
__device__ void row_products(const T* out, const T* dout, float* delta, unsigned n, unsigned width) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (row >= n) return;
    float sum = 0;
    for (unsigned column = threadIdx.x % WARP_SIZE; column < width; column += WARP_SIZE) {
        sum += to_float(out[size_t(row) * width + column]) * to_float(dout[size_t(row) * width + column]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP_SIZE == 0) delta[row] = sum;
}

// One block computes the gradients of one head of one sequence (`order` [sequences]: the longest first): for one tile of keys
// after the other, the tiles of rows that see it. `dqkv` is [tokens, 3, heads, width]; the gradients of queries accumulate in
// `dq` [tokens, heads, width], of which each block has its own part; `parts` [sequences, heads, columns + 1] receives the
// gradients of the biases and of `log T_h`.
template <class T, int D>
__device__ void backward(const T* qkv, const T* dout, const float* log_sum, const float* delta, T* dqkv, float* dq, float* parts,
                         const unsigned* order, const Batch& batch) {
    SHARED(unsigned char, memory);
    Pieces pieces{memory};
    Tile<T, D> keys{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Tile<T, D> values{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Tile<T, D> queries{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Tile<T, D> gradients{pieces.take<T>(Tile<T, D>::BYTES / sizeof(T))};
    Rows rows{pieces.take<long long>(TILE), pieces.take<unsigned>(TILE)};
    Rows of_keys{pieces.take<long long>(TILE), pieces.take<unsigned>(TILE)};
    float* of_row = pieces.take<float>(2 * TILE);
    float* bias = pieces.take<float>(batch.columns);
    float* dposition = pieces.take<float>(batch.max_distance);
    // By row and key, padded by one so that diagonals lie in different banks.
    constexpr unsigned STRIDE = TILE + 1;
    float* dscores = pieces.take<float>(TILE * STRIDE);
    float* diagonals = pieces.take<float>(2 * TILE);

    const unsigned head = blockIdx.y, sequence = order[blockIdx.x];
    const unsigned start = batch.offsets[sequence], n = batch.offsets[sequence + 1] - start;
    const unsigned d = batch.heads * batch.width;
    const float scale = expf(-batch.log_temperature[head]);
    const bool timed = batch.columns > batch.max_distance;
    // By row and bucket; empty without a time bias.
    float* dtime = pieces.take<float>(timed ? TILE * STRIDE : 0);
    const unsigned lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4 * 2;
    const unsigned own = threadIdx.x / WARP_SIZE * 16;
    const T* base = qkv + size_t(start) * 3 * d + head * batch.width;
    const T* base_dout = dout + size_t(start) * d + head * batch.width;
    T* base_dqkv = dqkv + size_t(start) * 3 * d + head * batch.width;
    float* base_dq = dq + size_t(start) * d + head * batch.width;

    for (unsigned i = threadIdx.x; i < batch.columns; i += BLOCK) bias[i] = batch.bias[head * batch.columns + i];
    for (unsigned i = threadIdx.x; i < batch.max_distance; i += BLOCK) dposition[i] = 0;
    for (unsigned i = threadIdx.x; timed && i < TILE * STRIDE; i += BLOCK) dtime[i] = 0;

    for (unsigned from = 0; from < n; from += TILE) {
        __syncthreads();
        keys.load(base + d, 3 * d, batch.width, from, n);
        values.load(base + 2 * d, 3 * d, batch.width, from, n);
        of_keys.load(batch, start, from, n);
        FragmentC dkeys[D / 8], dvalues[D / 8];
        // Earlier rows see none of these keys.
        for (unsigned first = from; first < n; first += TILE) {
            __syncthreads();
            rows.load(batch, start, first, n);
            __syncthreads();
            if (rows.most_visible() <= from) continue;
            queries.load(base, 3 * d, batch.width, first, n);
            gradients.load(base_dout, d, batch.width, first, n);
            for (unsigned i = threadIdx.x; i < TILE; i += BLOCK) {
                const size_t at = size_t(start + first + i) * batch.heads + head;
                of_row[i] = first + i < n ? log_sum[at] : 0;
                of_row[TILE + i] = first + i < n ? delta[at] : 0;
            }
            __syncthreads();
            // Here a warp has 16 keys, and takes two blocks of 8 rows at a time.
#pragma unroll
            for (int block = 0; block < TILE / 8; block += 2) {
                FragmentC weights[2], dweights[2];
#pragma unroll
                for (int b = 0; b < 2; ++b) {
#pragma unroll
                    for (int k = 0; k < D / 16; ++k) {
                        weights[b] = product(keys.left(own, 16 * k), queries.right_transposed(8 * (block + b), 16 * k),
                                             weights[b]);
                        dweights[b] = product(values.left(own, 16 * k),
                                              gradients.right_transposed(8 * (block + b), 16 * k), dweights[b]);
                    }
#pragma unroll
                    for (int value = 0; value < 4; ++value) {
                        const unsigned column = own + g + value / 2 * 8, row = 8 * (block + b) + t + value % 2;
                        const unsigned i = first + row, j = from + column;
                        float weight = 0, dscore = 0;
                        if (j < rows.visible[row]) {
                            float score = weights[b].values[value] * scale + bias[min(i - j, batch.max_distance - 1)];
                            if (timed) {
                                score += bias[batch.max_distance + time_bucket(rows.times[row], of_keys.times[column], j)];
                            }
                            weight = exponential(score - of_row[row], T());
                            dscore = weight * (dweights[b].values[value] - of_row[TILE + row]);
                        }
                        weights[b].values[value] = weight;
                        dweights[b].values[value] = dscore;
                        dscores[row * STRIDE + column] = dscore;
                    }
                }
                const FragmentA<T> left = as_left<T>(weights[0], weights[1]), dleft = as_left<T>(dweights[0], dweights[1]);
#pragma unroll
                for (int k = 0; k < D / 8; ++k) {
                    dvalues[k] = product(left, gradients.right(8 * block, 8 * k), dvalues[k]);
                    dkeys[k] = product(dleft, queries.right(8 * block, 8 * k), dkeys[k]);
                }
            }
            __syncthreads();
            // Here a warp has 16 rows. The same thread adds to the same elements for every tile of keys.
            FragmentC dqueries[D / 8];
#pragma unroll
            for (int k = 0; k < TILE / 16; ++k) {
                const float* at = dscores + (own + g) * STRIDE + 16 * k + t;
                FragmentA<T> left;
                set(left, 0, from_float<T>(at[0]), from_float<T>(at[1]));
                set(left, 1, from_float<T>(at[8 * STRIDE]), from_float<T>(at[8 * STRIDE + 1]));
                set(left, 2, from_float<T>(at[8]), from_float<T>(at[9]));
                set(left, 3, from_float<T>(at[8 * STRIDE + 8]), from_float<T>(at[8 * STRIDE + 9]));
#pragma unroll
                for (int c = 0; c < D / 8; ++c) dqueries[c] = product(left, keys.right(16 * k, 8 * c), dqueries[c]);
            }
#pragma unroll
            for (int c = 0; c < D / 8; ++c) {
#pragma unroll
                for (int value = 0; value < 4; ++value) {
                    const unsigned i = first + own + g + value / 2 * 8, column = 8 * c + t + value % 2;
                    if (i >= n || column >= batch.width) continue;
                    float* at = base_dq + size_t(i) * d + column;
                    *at = (from == 0 ? 0 : *at) + dqueries[c].values[value] * scale;
                }
            }
            // Diagonal `m` holds the pairs with row − key = m − 63.
            const int m = threadIdx.x;
            if (m < 2 * TILE - 1) {
                float sum = 0;
                for (int row = max(0, m - (TILE - 1)); row < min(TILE, m + 1); ++row) {
                    sum += dscores[row * STRIDE + row - m + TILE - 1];
                }
                diagonals[m] = sum;
            }
            if (timed && threadIdx.x < TILE) {
                const unsigned row = threadIdx.x;
                for (unsigned column = 0; column < TILE && from + column < rows.visible[row]; ++column) {
                    const unsigned bucket = time_bucket(rows.times[row], of_keys.times[column], from + column);
                    dtime[row * STRIDE + bucket] += dscores[row * STRIDE + column];
                }
            }
            __syncthreads();
            const int distance = int(first - from) + m - (TILE - 1), last = batch.max_distance - 1;
            if (m < 2 * TILE - 1 && distance >= 0 && distance < last) dposition[distance] += diagonals[m];
            if (m == 2 * TILE - 1) {
                float sum = 0;
                for (int other = max(0, last - int(first - from) + TILE - 1); other < 2 * TILE - 1; ++other) {
                    sum += diagonals[other];
                }
                dposition[last] += sum;
            }
        }
#pragma unroll
        for (int k = 0; k < D / 8; ++k) {
#pragma unroll
            for (int value = 0; value < 4; ++value) {
                const unsigned j = from + own + g + value / 2 * 8, column = 8 * k + t + value % 2;
                if (j >= n || column >= batch.width) continue;
                T* at = base_dqkv + size_t(j) * 3 * d + column;
                at[d] = from_float<T>(dkeys[k].values[value] * scale);
                at[2 * d] = from_float<T>(dvalues[k].values[value]);
            }
        }
    }
    __syncthreads();
    float* part = parts + (size_t(sequence) * batch.heads + head) * (batch.columns + 1);
    for (unsigned i = threadIdx.x; i < batch.max_distance; i += BLOCK) part[i] = dposition[i];
    if (timed && threadIdx.x < TIME_BUCKETS) {
        float sum = 0;
        for (int row = 0; row < TILE; ++row) sum += dtime[row * STRIDE + threadIdx.x];
        part[batch.max_distance + threadIdx.x] = sum;
    }
    // Σ q · dq is −∂/∂ log T_h.
    float sum = 0;
    for (unsigned i = threadIdx.x; i < n * batch.width; i += BLOCK) {
        const unsigned row = i / batch.width, column = i % batch.width;
        const size_t at = size_t(row) * 3 * d + column;
        const float dquery = base_dq[size_t(row) * d + column];
        base_dqkv[at] = from_float<T>(dquery);
        sum -= to_float(base[at]) * dquery;
    }
    sum = block_sum(sum, diagonals);
    if (threadIdx.x == 0) part[batch.columns] = sum;
}

// Kernels for heads of up to `D` columns.
#define ATTENTION(T, D)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                      \
        attention_forward_##T##_##D(const T* qkv, T* out, float* log_sum, const unsigned* work, BATCH_PARAMETERS) {          \
        forward<T, D>(qkv, out, log_sum, work, BATCH);                                                                       \
    }                                                                                                                        \
    KERNEL(attention_forward_##T##_##D);                                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_backward_##T##_##D(                                        \
        const T* qkv, const T* dout, const float* log_sum, const float* delta, T* dqkv, float* dq, float* parts,             \
        const unsigned* order, BATCH_PARAMETERS) {                                                                           \
        backward<T, D>(qkv, dout, log_sum, delta, dqkv, dq, parts, order, BATCH);                                            \
    }                                                                                                                        \
    KERNEL(attention_backward_##T##_##D);

#define ROW_PRODUCTS(T)                                                                                                      \
    extern "C" __global__ void attention_row_products_##T(const T* out, const T* dout, float* delta, unsigned n,             \
                                                          unsigned width) {                                                  \
        row_products(out, dout, delta, n, width);                                                                            \
    }                                                                                                                        \
    KERNEL(attention_row_products_##T);

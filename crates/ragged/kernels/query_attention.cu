// Attention of single rows, each of which may have its own condition (CGSA). Scores of hidden keys are not computed. All queries
// of a sequence share its keys and values.
//
// Query `r` at token `tokens[r]` sees the first `visible` keys of its sequence; under conditions, of these only the ones before
// its own row whose flag is set (`matches`, a byte per key, from `flags[r]` on), and its own key always.
#include "attention.cuh"

// The queries; `matches` is null if nothing is hidden.
struct Queries {
    const unsigned* tokens;
    const unsigned char* matches;
    const unsigned* flags;

    // Whether the query at row `i` sees key `j`, of the `visible` ones.
    __device__ __forceinline__ bool sees(unsigned r, unsigned i, unsigned j) const {
        return !matches || j == i || matches[flags[r] + j];
    }
};

// Returns the number of keys that the query at row `i` of a sequence loops over.
__device__ __forceinline__ unsigned last_key(const Batch& batch, const Queries& queries, unsigned start, unsigned i) {
    const unsigned visible = batch.keys ? batch.keys[start + i] : i + 1;
    // Under a condition a query's own row is always visible, even beyond `visible`.
    return queries.matches ? i + 1 : visible;
}

__device__ __forceinline__ bool in_sight(const Batch& batch, const Queries& queries, unsigned start, unsigned r, unsigned i,
                                         unsigned j) {
    const unsigned visible = batch.keys ? batch.keys[start + i] : i + 1;
    return (j < visible || (queries.matches && j == i)) && queries.sees(r, i, j);
}

__device__ __forceinline__ float score_of(const Batch& batch, const float* bias, const float* q, const float* key, float scale,
                                          unsigned start, unsigned i, unsigned j) {
    float product = 0;
    for (unsigned c = 0; c < batch.width; ++c) product += q[c] * key[c];
    float score = product * scale + bias[min(i - j, batch.max_distance - 1)];
    if (batch.columns > batch.max_distance) {
        score += bias[batch.max_distance + time_bucket(batch.times[start + i], batch.times[start + j], j)];
    }
    return score;
}

// One warp per query and head: `q` and `out` [queries, heads, width], `kv` [tokens, 2, heads, width], `log_sum` [queries, heads].
// `sequences` [queries] holds the sequence of each query.
extern "C" __global__ void query_attention_forward(const float* q, const float* kv, float* out, float* log_sum,
                                                   const unsigned* sequences, unsigned n, const unsigned* tokens,
                                                   const unsigned char* matches, const unsigned* flags, BATCH_PARAMETERS) {
    const Batch batch = BATCH;
    const Queries queries{tokens, matches, flags};
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const unsigned at = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (at >= n * heads) return;
    const unsigned r = at / heads, head = at % heads, d = heads * width;
    const unsigned start = offsets[sequences[r]], i = tokens[r] - start;
    const float scale = expf(-log_temperature[head]);
    const float* query = q + size_t(r) * d + head * width;
    const float* keys_at = kv + size_t(start) * 2 * d + head * width;
    const float* of_bias = bias + head * columns;
    // A lane scores one key at a time, and holds up to four columns of the result.
    float result[4] = {0, 0, 0, 0}, largest = NEVER, sum = 0;
    const unsigned end = last_key(batch, queries, start, i);
    for (unsigned from = 0; from < end; from += WARP_SIZE) {
        const unsigned j = from + lane;
        float score = NEVER;
        if (j < end && in_sight(batch, queries, start, r, i, j)) {
            score = score_of(batch, of_bias, query, keys_at + size_t(j) * 2 * d, scale, start, i, j);
        }
        const float now = fmaxf(warp_max(score), largest);
        const float shrink = largest == NEVER ? 0 : expf(largest - now);
        const float weight = score == NEVER ? 0 : expf(score - now);
        sum = sum * shrink + weight;
        for (float& value : result) value *= shrink;
        largest = now;
        for (unsigned other = 0; other < WARP_SIZE && from + other < end; ++other) {
            const float of_other = __shfl_sync(ALL_LANES, weight, other);
            const float* value = keys_at + size_t(from + other) * 2 * d + d;
            for (unsigned c = 0; c < 4; ++c) {
                const unsigned column = c * WARP_SIZE + lane;
                if (column < width) result[c] += of_other * value[column];
            }
        }
    }
    sum = warp_sum(sum);
    for (unsigned c = 0; c < 4; ++c) {
        const unsigned column = c * WARP_SIZE + lane;
        if (column < width) out[size_t(r) * d + head * width + column] = result[c] / sum;
    }
    if (lane == 0) log_sum[at] = largest + logf(sum);
}
KERNEL(query_attention_forward);

// One block per sequence and head, over its queries in order: a thread owns every 128th key and its gradients. `delta`
// [queries, heads] is Σ dout · out. `parts` [sequences, heads, columns + 1] receives the gradients of the biases and of
// `log T_h`. Shared: `longest` floats for the score gradients of one query, `columns` for the gradients of the biases, and 32 for
// sums.
extern "C" __global__ void __launch_bounds__(BLOCK)
    query_attention_backward(const float* q, const float* kv, const float* dout, const float* log_sum, const float* delta,
                             float* dq, float* dkv, float* parts, const unsigned* of_sequence, unsigned longest,
                             const unsigned* tokens, const unsigned char* matches, const unsigned* flags, BATCH_PARAMETERS) {
    const Batch batch = BATCH;
    const Queries queries{tokens, matches, flags};
    SHARED(unsigned char, memory);
    Pieces pieces{memory};
    float* dscores = pieces.take<float>(longest);
    float* dbias = pieces.take<float>(columns);
    float* scratch = pieces.take<float>(WARP_SIZE);
    const unsigned sequence = blockIdx.x, head = blockIdx.y, d = heads * width;
    const unsigned start = offsets[sequence], n = offsets[sequence + 1] - start;
    const float scale = expf(-log_temperature[head]);
    const float* keys_at = kv + size_t(start) * 2 * d + head * width;
    float* dkeys_at = dkv + size_t(start) * 2 * d + head * width;
    const float* of_bias = bias + head * columns;
    for (unsigned i = threadIdx.x; i < columns; i += BLOCK) dbias[i] = 0;
    for (unsigned j = threadIdx.x; j < n; j += BLOCK) {
        for (unsigned c = 0; c < width; ++c) dkeys_at[size_t(j) * 2 * d + c] = dkeys_at[size_t(j) * 2 * d + d + c] = 0;
    }
    float dtemperature = 0;
    for (unsigned r = of_sequence[sequence]; r < of_sequence[sequence + 1]; ++r) {
        const unsigned i = tokens[r] - start, end = last_key(batch, queries, start, i);
        const size_t of_query = size_t(r) * d + head * width;
        __syncthreads();
        for (unsigned j = threadIdx.x; j < end; j += BLOCK) {
            dscores[j] = 0;
            if (!in_sight(batch, queries, start, r, i, j)) continue;
            const size_t at = size_t(j) * 2 * d;
            const float score = score_of(batch, of_bias, q + of_query, keys_at + at, scale, start, i, j);
            const float weight = expf(score - log_sum[r * heads + head]);
            float product = 0;
            for (unsigned c = 0; c < width; ++c) product += dout[of_query + c] * keys_at[at + d + c];
            const float dscore = weight * (product - delta[r * heads + head]);
            for (unsigned c = 0; c < width; ++c) {
                dkeys_at[at + c] += dscore * scale * q[of_query + c];
                dkeys_at[at + d + c] += weight * dout[of_query + c];
            }
            dscores[j] = dscore;
        }
        __syncthreads();
        for (unsigned c = threadIdx.x; c < width; c += BLOCK) {
            float sum = 0;
            for (unsigned j = 0; j < end; ++j) sum += dscores[j] * keys_at[size_t(j) * 2 * d + c];
            dq[of_query + c] = sum * scale;
            dtemperature -= sum * scale * q[of_query + c];
        }
        // Every distance but the last has a single key.
        for (unsigned j = threadIdx.x; j < end; j += BLOCK) {
            if (i - j < max_distance - 1) dbias[i - j] += dscores[j];
        }
        if (threadIdx.x == BLOCK - 1) {
            for (unsigned j = 0; j < end && i - j >= max_distance - 1; ++j) dbias[max_distance - 1] += dscores[j];
        }
        if (columns > max_distance && threadIdx.x < TIME_BUCKETS) {
            float sum = 0;
            for (unsigned j = 0; j < end; ++j) {
                if (time_bucket(times[start + i], times[start + j], j) == threadIdx.x) sum += dscores[j];
            }
            dbias[max_distance + threadIdx.x] += sum;
        }
    }
    __syncthreads();
    float* part = parts + (size_t(sequence) * heads + head) * (columns + 1);
    for (unsigned i = threadIdx.x; i < columns; i += BLOCK) part[i] = dbias[i];
    dtemperature = block_sum(dtemperature, scratch);
    if (threadIdx.x == 0) part[columns] = dtemperature;
}
KERNEL(query_attention_backward);

// Means of bags of table rows, and gathers of single rows: embedding lookups. The backward pass loops over the table's rows
// instead of the bags, so that one thread computes each sum, in a fixed order.
#include "common.cuh"

// `out[bag]` = the mean of the rows `rows[offsets[bag]..offsets[bag + 1]]` of `table` [.., columns]; zeros for an empty bag. One
// warp per bag.
extern "C" __global__ void bag_mean(const float* table, const unsigned* offsets, const unsigned* rows, float* out,
                                    unsigned bags, unsigned columns) {
    const unsigned bag = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (bag >= bags) return;
    const unsigned from = offsets[bag], to = offsets[bag + 1];
    const float share = to > from ? 1.0f / (to - from) : 0;
    for (unsigned column = threadIdx.x % WARP_SIZE; column < columns; column += WARP_SIZE) {
        float sum = 0;
        for (unsigned i = from; i < to; ++i) sum += share * table[size_t(rows[i]) * columns + column];
        out[size_t(bag) * columns + column] = sum;
    }
}
KERNEL(bag_mean);

// `out[piece]` = Σ `shares[place]` · `values[place]` over `place = places[i]` for `i` in `offsets[piece]..offsets[piece + 1]`;
// zeros for an empty piece. `place = i` if `places` is null; no shares if `shares` is null. One warp per piece. A gradient takes
// two launches: over pieces of bounded length of each table row's bags, then over the pieces of each row.
extern "C" __global__ void sum_segments(const float* values, const unsigned* offsets, const unsigned* places,
                                        const float* shares, float* out, unsigned pieces, unsigned columns) {
    const unsigned piece = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (piece >= pieces) return;
    const unsigned from = offsets[piece], to = offsets[piece + 1];
    for (unsigned column = threadIdx.x % WARP_SIZE; column < columns; column += WARP_SIZE) {
        float sum = 0;
        for (unsigned i = from; i < to; ++i) {
            const unsigned place = places ? places[i] : i;
            const float value = values[size_t(place) * columns + column];
            sum += shares ? shares[place] * value : value;
        }
        out[size_t(piece) * columns + column] = sum;
    }
}
KERNEL(sum_segments);

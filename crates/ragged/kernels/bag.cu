// Means of bags of table rows, and of single rows: embedding lookups. The backward pass goes through the table's rows instead of
// the bags, so that every sum is one thread's, in a fixed order.
#include "common.cuh"

// `out[bag]` = the mean of the rows `rows[offsets[bag]..offsets[bag + 1]]` of `table` [.., columns]; zeros for an empty bag. A warp
// a bag.
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

// `out[piece]` = Σ of `values[places[i]]` over `i` in `offsets[piece]..offsets[piece + 1]`, each times `shares[places[i]]`, or zeros;
// without places and shares where those are null. A warp a piece. Called twice for a gradient: for pieces of bounded length of each table row's bags, and for the
// pieces of each row.
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

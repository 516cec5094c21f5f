// Adam (Kingma and Ba, 2015) in place, for a whole parameter or for the rows of a table that a step touched.
#include "common.cuh"

// `weights` [n, columns] and `moments` [n, 2 columns], first moments before second ones. `gradient` [count, columns] holds the
// distinct rows `rows`, or the first rows if null. One block per row. `clipping` [2] is the result of `clip_norm`; `rate` and
// `root` include the bias corrections.
extern "C" __global__ void adam(float* weights, float* moments, const float* gradient, const unsigned* rows, unsigned columns,
                                const float* clipping, float decay, float rate, float root, float beta1, float beta2,
                                float epsilon) {
    const float scale = clipping[1];
    // A non-finite gradient changes nothing.
    if (!(scale <= 1)) return;
    const size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    for (unsigned column = threadIdx.x; column < columns; column += blockDim.x) {
        float* first = moments + row * 2 * columns + column;
        float* second = first + columns;
        float* weight = weights + row * columns + column;
        const float g = decay * *weight + scale * gradient[size_t(blockIdx.x) * columns + column];
        const float m = beta1 * *first + (1 - beta1) * g;
        const float v = beta2 * *second + (1 - beta2) * g * g;
        *first = m;
        *second = v;
        *weight -= rate * m / (sqrtf(v) * root + epsilon);
    }
}
KERNEL(adam);

// `clipping` [2] receives the norm of a gradient, from its `n` sums of squares, and the factor that clips it to `clip_norm`, NaN
// if the norm is not finite. One block. Shared: a double per thread.
extern "C" __global__ void clip_norm(const double* squares, float* clipping, unsigned n, float clip_norm) {
    SHARED(double, sums);
    const double sum = block_total(squares, n, sums);
    if (threadIdx.x == 0) {
        const float norm = sqrt(sum);
        clipping[0] = norm;
        clipping[1] = norm < INFINITY ? (norm > clip_norm ? clip_norm / norm : 1) : NAN;
    }
}
KERNEL(clip_norm);

// Adam (Kingma and Ba, 2015) in place, of a whole parameter or of the rows of a table that a step has touched.
#include "common.cuh"

// `weights` [n, columns] and `moments` [n, 2 columns], first moments before second ones. `gradient` is [count, columns], for
// the rows `rows`, each once, or for the first `count` rows where that is null. `scale` is what clipping leaves of the gradient;
// `rate` and `root` hold the bias corrections.
extern "C" __global__ void adam(float* weights, float* moments, const float* gradient, const unsigned* rows, unsigned count,
                                unsigned columns, float scale, float decay, float rate, float root, float beta1, float beta2,
                                float epsilon) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size_t(count) * columns) return;
    const size_t r = i / columns, column = i % columns, row = rows ? rows[r] : r;
    float* first = moments + row * 2 * columns + column;
    float* second = first + columns;
    float* weight = weights + row * columns + column;
    const float g = decay * *weight + scale * gradient[i];
    const float m = beta1 * *first + (1 - beta1) * g;
    const float v = beta2 * *second + (1 - beta2) * g * g;
    *first = m;
    *second = v;
    *weight -= rate * m / (sqrtf(v) * root + epsilon);
}
KERNEL(adam);

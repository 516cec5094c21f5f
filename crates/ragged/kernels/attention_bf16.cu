// Self-attention in 16-bit floats; sums and softmax are in 32-bit ones.
#include "self_attention.cuh"

ATTENTION(bf16, 16)
ATTENTION(bf16, 32)
ATTENTION(bf16, 64)
ATTENTION(bf16, 128)
ROW_PRODUCTS(bf16)

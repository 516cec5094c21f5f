// Self-attention in 32-bit floats.
#include "self_attention.cuh"

ATTENTION(float, 16)
ATTENTION(float, 32)
ATTENTION(float, 64)
ATTENTION(float, 128)
ROW_PRODUCTS(float)

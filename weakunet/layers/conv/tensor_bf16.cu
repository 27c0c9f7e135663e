// All kernels on tensor cores once more, with factors in bfloat16: `--precision bf16`. What BF16
// changes is in tensor_core.cuh. Arrays and sums stay float32; a tile and the arranged weights hold
// two factors where they held one. So a block works on 16 input channels at a time instead of 8,
// and on twice as many planes in the weights' gradients: half as many mma for the same sums.
#define BF16
#include "tensor.cu"
#include "folded.cu"

// All kernels on tensor cores once more, with factors in bfloat16: `--precision bf16`. What BF16
// changes is in tensor_core.cuh. Arrays stay float32, as do sums; a tile and the arranged weights
// hold two factors where they held one. So a block works on 16 input channels at a time instead of
// 8, and on twice as many planes in the weights' gradients: half as many pieces of work, each with
// as many instructions as before but for those that fill the tiles.
#define BF16
#include "tensor.cu"
#include "folded.cu"

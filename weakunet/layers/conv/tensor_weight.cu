// The gradient of the 3x3x3 convolution's weights on tensor cores: the sums of naive.cu with
// factors rounded to TF32, as products of matrices; tensor_core.cuh says what a tensor core does.
//
// For each tap, dW (output, input channels) += dY (output channels, voxels) X (voxels moved by the
// tap, input channels). One mma takes 16 output channels, 8 voxels along x and 8 input channels.
//
// The sum over all voxels of all scans is shared out over many blocks; each leaves its part, and
// conv3d_sum_parts (tiled_weight.cu) adds the parts in their order. No atomics, hence the
// same bits every time. A volume (one channel of one scan) has fewer than 2^31 voxels; offsets
// beyond it are 64-bit.
#include "tensor_core.cuh"

#define DW_X 16  // a tile has DW_X x DW_Y x DW_Z voxels
#define DW_Y 4
#define DW_Z 2
#define DW_MAPS 32      // output channels of a block: two times the 16 rows of A
#define DW_GROUPS 2     // groups of 8 input channels of a block
#define DW_THREADS 192  // 3 x DW_GROUPS warps

// computes  the part of dw that some of the tiles contribute: parts[s] (C_out, C_in, 3, 3, 3) is
//           the sum over the s-th of S runs of tiles
// threads   a block of 6 warps owns 32 output and 16 input channels, a warp 8 of the input channels
//           and the 9 taps (i, 0..2, 0..2) of one i: D for 9 taps by 2 x 16 output channels, 72
//           sums a lane in registers. Grid: S, groups of 16 input, groups of 32 output channels.
// memory    per tile of 16 x 4 x 2 voxels (x, y, z) a block reads 18 x 6 x 4 elements of each of
//           its input and 128 of each of its output channels (in 32-byte sectors 768 and 128). The
//           next tile is the next one along z, so half of its x is still in the L1.
//           Writes each of its weights once.
//           From shared memory a warp reads, for the 9 taps of 8 voxels, 8 floats of dy and at most
//           18 of x (6 of them new in a row below another) for 18 mma, no bank conflicts.
// work      2 N D H W FLOP a weight. Tiles in which dy is 0 everywhere are left out: adding
//           products with 0 changes no bit.
//           For a block and tile an SM of an H200 should need 2787 cycles for 1728 mma, 1976 for
//           shared memory and 2222 to issue 8887 instructions (predictions.py; not measured).
// no race   every element of parts has one owner, who adds in a fixed order; __syncthreads() stands
//           between filling shared memory and reading it, and between reading and filling again
extern "C" __global__ void __launch_bounds__(DW_THREADS, 2)
conv3d_tensor_backward_weight(const float* __restrict__ dy, const float* __restrict__ x,
                              float* __restrict__ parts, int scans, int c_in, int c_out, int depth,
                              int height, int width)
{
    typedef Tile<DW_X, DW_Y, DW_Z> Inner;
    typedef Tile<DW_X + 2, DW_Y + 2, DW_Z + 2> Halo;
    __shared__ float4 dy_tile[DW_MAPS / CHANNELS * Inner::SIZE];
    __shared__ float4 x_tile[DW_GROUPS * Halo::SIZE];
    int tiles_x = (width + DW_X - 1) / DW_X, tiles_y = (height + DW_Y - 1) / DW_Y;
    int tiles_z = (depth + DW_Z * PAIR - 1) / (DW_Z * PAIR);
    long long voxels = (long long)depth * height * width;
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int c0 = blockIdx.y * DW_GROUPS * CHANNELS, o0 = blockIdx.z * DW_MAPS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int i = threadIdx.x / 32 % 3, group = threadIdx.x / 96;  // this warp's taps and input channels
    // what this lane holds of A and of B: channel g of voxel t; of x at tap (i, 0, 0)
    const float* dy_from = (const float*)(dy_tile + g / 4 * Inner::PITCH + t) + g % 4;
    const float* x_from = (const float*)(x_tile + group * Halo::SIZE + g / 4 * Halo::PITCH + t +
                                         i * (DW_X + 2) * (DW_Y + 2)) + g % 4;

    float sum[9][2][4] = {};
    long long tile = tiles * blockIdx.x / gridDim.x, last = tiles * (blockIdx.x + 1) / gridDim.x;
    int z0 = (int)(tile % tiles_z) * DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * DW_X;
    long long n = tile / tiles_z / tiles_y / tiles_x;
    for (; tile < last; ++tile, Inner::next(z0, y0, x0, n, depth, height, width)) {
        __syncthreads();  // nobody reads the last tile any more
        bool any = Inner::fill<DW_MAPS / CHANNELS, 1, DW_Z>(
            dy_tile, dy + (n * c_out + o0) * voxels, c_out - o0, x0, y0, z0, depth, height, width);
        if (!__syncthreads_or(any)) continue;
        Halo::fill<DW_GROUPS, 1, DW_Z>(x_tile, x + (n * c_in + c0) * voxels, c_in - c0, x0 - 1,
                                       y0 - 1, z0 - 1, depth, height, width);
        __syncthreads();  // the tile is there
        #pragma unroll 1
        for (int part = 0; part < DW_Z * DW_X / 8; ++part) {
            int plane = part / 2, x_ = part % 2 * 8;  // columns of 8 voxels of one plane
            float2 near[DW_Y + 2][3];
            #pragma unroll
            for (int r = 0; r < DW_Y + 2; ++r) {
                #pragma unroll
                for (int m = 0; m < 3; ++m) {
                    const float* v = x_from + 4 * ((plane * (DW_Y + 2) + r) * (DW_X + 2) + x_ + m);
                    near[r][m] = make_float2(v[0], v[4 * 4]);  // voxels t and t + 4
                }
                if (r < 2) continue;
                #pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float* v = dy_from + 4 * (2 * half * Inner::SIZE +
                                                    (plane * DW_Y + r - 2) * DW_X + x_);
                    const float* v8 = v + 4 * Inner::SIZE;  // 8 channels on
                    float4 gradient = make_float4(v[0], v8[0], v[4 * 4], v8[4 * 4]);
                    #pragma unroll
                    for (int tap = 0; tap < 9; ++tap)
                        mma(sum[tap][half], gradient, near[r - 2 + tap / 3][tap % 3]);
                }
            }
        }
    }

    #pragma unroll
    for (int tap = 0; tap < 9; ++tap)
        #pragma unroll
        for (int q = 0; q < 8; ++q) {  // this lane's D: channels 2t, 2t + 1 in rows g, g + 8
            int o = o0 + q / 2 * 8 + g, c = c0 + group * CHANNELS + 2 * t + q % 2;
            long long weight = (((long long)blockIdx.x * c_out + o) * c_in + c) * 27 + i * 9 + tap;
            if (o < c_out && c < c_in) parts[weight] = sum[tap][q / 4][q % 4];
        }
}

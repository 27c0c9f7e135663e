// The 3x3x3 convolution on tensor cores: the sums of naive.cu with factors rounded to TF32, as
// products of matrices. Forward and backward to the input share a kernel; the gradient of the
// weights has its own, below. tensor_core.cuh says what a tensor core does.
//
// For each tap, Y (output channels, voxels) += W (output, input channels) X (input channels, voxels
// moved by the tap). One mma takes 16 output channels, 8 input channels and a row of 8 voxels.
//
// A volume (one channel of one scan) has fewer than 2^31 voxels; offsets beyond it are 64-bit.
#include "tensor_core.cuh"

#define MAPS 32       // output channels of a block: two times the 16 rows of A
#define FRAGMENTS 64  // the weights of a tap in MAPS output and 8 input channels, in float4

// computes  the weights in the order in which conv3d_tensor reads them, rounded to TF32:
//           arranged[group of 32 output channels, group of 8 input channels, tap, which 16 of the
//           32, lane] is what that lane holds of A (16 output x 8 input channels; lane's columns
//           t, t + 4 are channels 2t, 2t + 1); 0 where there is no channel. backward != 0: the
//           weights that take dy to dx, flipped along z, y and x, C_in and C_out exchanged; c_in
//           and c_out are the channels of the convolution that uses them.
// threads   thread t owns arranged[t], t < total = 27 x (C_in, padded to 8) x (C_out, to 32)
// memory    reads 1 element, writes 1 element an output
// work      1 rounding an output
// no race   every arranged[t] has one owner, and nothing that is read is written
extern "C" __global__ void conv3d_tensor_weights(const float* __restrict__ w,
                                                 float* __restrict__ arranged, int c_in, int c_out,
                                                 int backward, long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int part = (int)(t % 4), lane = (int)(t / 4 % 32), half = (int)(t / 128 % 2);
    int tap = (int)(t / 256 % 27), groups = (c_in + PIECE - 1) / PIECE;
    int c = (int)(t / 256 / 27 % groups) * PIECE + lane % 4 * 2 + part / 2;
    int o = (int)(t / 256 / 27 / groups) * MAPS + half * 16 + part % 2 * 8 + lane / 4;
    float value[PAIR];
    for (int p = 0; p < PAIR; ++p, c += CHANNELS) {
        long long place = backward ? ((long long)c * c_out + o) * 27 + 26 - tap
                                   : ((long long)o * c_in + c) * 27 + tap;
        value[p] = o < c_out && c < c_in ? w[place] : 0.0f;
    }
    arranged[t] = to_factor(value[0], value[PAIR - 1]);
}

#define TILE_X 16    // a block's tile of the output has TILE_X x TILE_Y x TILE_Z voxels
#define TILE_Y 8     // a warp owns 8 x TILE_Y of one plane
#define TILE_Z 4
#define THREADS 256  // TILE_X / 8 x TILE_Z warps

// computes  y as at the top of naive.cu, for k = 3; without b where bias = 0. With dy for x,
//           flipped weights and no bias this is dx. The ReLU that comes next is computed on the way
//           out: relu != 0: max(y, 0); masked != 0: its backward, dx = 0 where mask <= 0.
// threads   a block of 8 warps owns a tile of 16 x 8 x 4 voxels (x, y, z) in 32 output channels, a
//           warp 8 x 8 voxels of one plane: D for 2 x 16 channels by 8 rows of voxels, 64 sums a
//           lane in registers. Grid: tiles, groups of 32 output channels, scans.
// memory    per block and input channel the halo of 18 x 10 x 6 elements is read once, for 512
//           voxels: 2.1 elements of x a voxel and input channel (3.75 counted in the 32-byte
//           sectors that really move: a row starts one voxel before a sector), plus 27 x 32
//           weights. Writes 1 an output.
//           From shared memory a warp reads 10 float2 of x, which serve 3 taps along y, and 6
//           float4 of weights for 48 mma: 44 x 128 bytes, no bank conflicts.
//           43,904 bytes of shared memory, 128 registers: two blocks fit on an SM, and while one
//           waits for its tile the other computes.
// work      2 x 27 C_in FLOP an output. 8 channels that are 0 everywhere in the halo are left out
//           (of a dy behind a global max pooling most are): adding products with 0 changes no bit.
//           For a block and 8 channels an SM of an H200 should need 5574 cycles for 3456 mma, 3654
//           for shared memory, 2541 to issue 10,164 instructions (predictions.py; not measured).
// no race   every output has one owner; __syncthreads() stands between filling shared memory and
//           reading it, and between reading it and filling it again
extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv3d_tensor(const float* __restrict__ x, const float* __restrict__ arranged,
              const float* __restrict__ b, const float* __restrict__ mask, float* __restrict__ y,
              int c_in, int c_out, int depth, int height, int width, int bias, int relu, int masked)
{
    typedef Tile<TILE_X + 2, TILE_Y + 2, TILE_Z + 2> Halo;
    __shared__ float4 x_tile[Halo::SIZE];
    __shared__ float4 w_tile[9 * FRAGMENTS];
    int tiles_x = (width + TILE_X - 1) / TILE_X, tiles_y = (height + TILE_Y - 1) / TILE_Y;
    int x0 = blockIdx.x % tiles_x * TILE_X, y0 = blockIdx.x / tiles_x % tiles_y * TILE_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * TILE_Z;
    long long voxels = (long long)depth * height * width;
    x += blockIdx.z * c_in * voxels;  // this block's scan
    y += blockIdx.z * c_out * voxels;
    mask += blockIdx.z * c_out * voxels;
    long long first = (long long)blockIdx.y * ((c_in + PIECE - 1) / PIECE) * 27 * FRAGMENTS;
    const float4* weights = (const float4*)arranged + first;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64;
    // channels 2t, 2t + 1 of the voxel that this lane holds of B: of row 0 at tap (0, 0, 0)
    const float2* from = (const float2*)(x_tile + t / 2 * Halo::PITCH + warp_x + g +
                                         warp_z * (TILE_X + 2) * (TILE_Y + 2)) + t % 2;

    float sum[2][TILE_Y][4] = {};
    for (int c0 = 0; c0 < c_in; c0 += PIECE, weights += 27 * FRAGMENTS) {
        __syncthreads();  // nobody reads the last tile any more
        bool any = Halo::fill<1>(x_tile, x + c0 * voxels, c_in - c0, x0 - 1, y0 - 1, z0 - 1, depth,
                                 height, width);
        if (!__syncthreads_or(any)) continue;
        #pragma unroll 1
        for (int i = 0; i < 3; ++i) {
            __syncthreads();  // nobody reads the last weights any more
            for (int e = threadIdx.x; e < 9 * FRAGMENTS; e += THREADS)
                w_tile[e] = weights[i * 9 * FRAGMENTS + e];
            __syncthreads();  // the weights of 9 taps are there
            #pragma unroll
            for (int m = 0; m < 3; ++m) {
                float2 row[TILE_Y + 2];
                #pragma unroll
                for (int r = 0; r < TILE_Y + 2; ++r)
                    row[r] = from[2 * ((i * (TILE_Y + 2) + r) * (TILE_X + 2) + m)];
                #pragma unroll
                for (int j = 0; j < 3; ++j)
                    #pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float4 weight = w_tile[(j * 3 + m) * FRAGMENTS + half * 32 + lane];
                        #pragma unroll
                        for (int r = 0; r < TILE_Y; ++r)
                            mma(sum[half][r], weight, row[r + j]);
                    }
            }
        }
    }

    int left = width - x0 - warp_x - 2 * t;  // this lane's D: voxels 2t, 2t + 1 of each row
    if (left <= 0 || z0 + warp_z >= depth) return;
    #pragma unroll
    for (int q = 0; q < 4; ++q) {
        int o = blockIdx.y * MAPS + q * 8 + g;
        if (o >= c_out) return;
        float shift = bias ? b[o] : 0.0f;
        long long place = o * voxels + ((z0 + warp_z) * height + y0) * width + width - left;
        #pragma unroll
        for (int r = 0; r < TILE_Y; ++r, place += width) {
            if (y0 + r >= height) continue;
            float value[2];
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                value[e] = sum[q / 2][r][q % 2 * 2 + e] + shift;
                if (relu && value[e] < 0) value[e] = 0;
                if (masked && e < left && !(mask[place + e] > 0)) value[e] = 0;
            }
            if (width % 2 == 0) {
                *(float2*)(y + place) = make_float2(value[0], value[1]);  // a sector by 4 lanes
            } else {
                y[place] = value[0];
                if (left > 1) y[place + 1] = value[1];
            }
        }
    }
}

// ---- the gradient of the weights -----------------------------------------------------------------
//
// For each tap, dW (output, input channels) += dY (output channels, voxels) X (voxels moved by the
// tap, input channels). One mma takes 16 output channels, 8 voxels along x and 8 input channels.
//
// The sum over all voxels of all scans is split across many blocks; each writes its part, and
// conv3d_sum_parts (tiled.cu) adds the parts in their order. No atomics, hence the same bits every
// time.

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

// The decoder's convolution of an upsampled tensor on tensor cores: forward, backward to the coarse
// tensor, and the gradient of the weights. folded.py says why 8 taps do the work of 27,
// tensor_core.cuh what a tensor core does.
//
// Folded, the weights have 4 taps along each axis: coarse voxel i reaches the outputs 2i - 1 + f,
// f = 0 ... 3, with fold[f] = w[2 - f] + w[3 - f] (what lies outside of w is 0). This is a
// transposed convolution of stride 2, and its backward a convolution of stride 2. Output 2i + p
// (parity p) meets 2 of the 4 taps: of coarse voxels i + p - 1 + a, a = 0, 1, with f = 3 - p - 2a.
// So coarse voxel i gets back from the outputs 2 (i - p + a) + p, with f = 1 - p + 2a.
//
// depth, height, width are the coarse volume's; a fine volume has fewer than 2^31 voxels.
#include "tensor_core.cuh"

#define UP_MAPS 16       // output channels of a forward block: the rows of A
#define UP_BACK_MAPS 64  // coarse channels of a backward block: 4 times the rows of A
#define UP_X 16          // a block's tile has UP_X x UP_Y x UP_Z coarse voxels
#define UP_Y 8           // a warp works on 8 x UP_Y of one plane
#define UP_Z 2
#define UP_THREADS 256

// computes  the folded weights in the order in which the kernels read them, rounded to TF32:
//           arranged[group of output channels, group of 8 input channels, tap, which 16 of the
//           group's output channels, lane] as in tensor.cu; a tap is (p and a along z and y
//           as p_z, p_y, a_z, a_y, then p_x, a_x). backward = 0: groups of 16 output channels;
//           backward != 0: the weights that take dy back to the coarse tensor, groups of 64; c_in
//           and c_out are the channels of the convolution that uses them.
// threads   thread t owns arranged[t], t < total = 64 x (C_in, padded to 8) x (C_out, to 16 or 64)
// memory    reads at most 8 elements, writes 1 an output
// work      at most 8 additions and 1 rounding an output
// no race   every arranged[t] has one owner, and nothing that is read is written
extern "C" __global__ void folded_tensor_weights(const float* __restrict__ w,
                                                   float* __restrict__ arranged, int c_in,
                                                   int c_out, int backward, long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int maps = backward ? UP_BACK_MAPS : UP_MAPS, groups = (c_in + PIECE - 1) / PIECE;
    int part = (int)(t % 4), lane = (int)(t / 4 % 32);
    long long rest = t / (8 * maps);  // a tap's weights: maps x 8
    int tap = (int)(rest % 64), c = (int)(rest / 64 % groups) * PIECE + lane % 4 * 2 + part / 2;
    int o = (int)(rest / 64 / groups) * maps + (int)(t / 128 % (maps / 16)) * 16 + part % 2 * 8 +
            lane / 4;
    int p[3] = {tap / 32, tap / 16 % 2, tap / 2 % 2}, a[3] = {tap / 8 % 2, tap / 4 % 2, tap % 2};
    float sum[PAIR] = {};
    for (int e = 0; e < 8 * PAIR; ++e) {
        int place = 0, plus[3] = {e / 4 % 2, e / 2 % 2, e % 2}, ch = c + e / 8 * CHANNELS;
        bool inside = o < c_out && ch < c_in;
        for (int axis = 0; axis < 3; ++axis) {
            int f = backward ? 1 - p[axis] + 2 * a[axis] : 3 - p[axis] - 2 * a[axis];
            int k = 2 - f + plus[axis];
            inside = inside && k >= 0 && k < 3;
            place = place * 3 + k;
        }
        long long filter = backward ? (long long)ch * c_out + o : (long long)o * c_in + ch;
        if (inside) sum[e / 8] += w[filter * 27 + place];
    }
    arranged[t] = to_factor(sum[0], sum[PAIR - 1]);
}

// computes  y += the folded convolution of x, the coarse tensor (c_in channels); relu != 0: then
//           max(y, 0). y holds what the skip connection contributed, and the bias.
// threads   a block of 8 warps owns the outputs above 16 x 8 x 2 coarse voxels (x, y, z) in 16
//           output channels, of one parity in z and both in y and x; a warp those of 8 x 8 coarse
//           voxels of one plane with one parity in y and both in x (so that rows are written
//           whole): D for 2 x 16 (parity in x, channels) by 8 rows, 64 sums a lane in registers.
//           Grid: tiles, groups of 16 output channels x 2 parities in z, scans.
// memory    per block and input channel a halo of 18 x 10 x 3 elements is read once, for 1024
//           outputs a channel (in 32-byte sectors 960 elements), plus 32 x 16 weights. Reads and
//           writes 1 of y an output.
//           From shared memory a warp reads 54 float2 of x and 16 float4 of weights for 128 mma:
//           172 x 128 bytes, no bank conflicts.
//           33,664 bytes of shared memory and at most 128 registers: two blocks fit on an SM.
// work      2 x 8 C_in FLOP an output; on the upsampled tensor it would be 2 x 27 C_in.
//           For a block and 8 channels an SM of an H200 should need 2069 cycles for its share of
//           the L2's traffic, 1652 for 1024 mma, 1639 for shared memory and 1106 to issue 4425
//           instructions (predictions.py; not measured).
// no race   every output has one owner, the only one who reads it; __syncthreads() stands between
//           filling shared memory and reading it, and between reading it and filling it again
extern "C" __global__ void __launch_bounds__(UP_THREADS, 2)
folded_tensor_forward(const float* __restrict__ x, const float* __restrict__ arranged,
                        float* __restrict__ y, int c_in, int c_out, int depth, int height,
                        int width, int relu)
{
    typedef Tile<UP_X + 2, UP_Y + 2, UP_Z + 1> Halo;
    __shared__ float4 x_tile[Halo::SIZE];
    __shared__ float4 w_tile[32 * 32];  // 32 taps, 32 lanes
    int tiles_x = (width + UP_X - 1) / UP_X, tiles_y = (height + UP_Y - 1) / UP_Y;
    int x0 = blockIdx.x % tiles_x * UP_X, y0 = blockIdx.x / tiles_x % tiles_y * UP_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * UP_Z, pz = blockIdx.y % 2, group = blockIdx.y / 2;
    long long voxels = (long long)depth * height * width;
    x += blockIdx.z * c_in * voxels;  // this block's scan
    y += blockIdx.z * c_out * 8 * voxels;
    long long first = (long long)group * ((c_in + PIECE - 1) / PIECE) * 64 + pz * 32;
    const float4* weights = (const float4*)arranged + first * 32;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64 % 2, py = threadIdx.x / 128;
    // channels 2t, 2t + 1 of the voxel that this lane holds of B: of row 0 at a_z = 0, one to the
    // left in x; and what it holds of A, of this parity's first tap
    const float2* from = (const float2*)(x_tile + t / 2 * Halo::PITCH + warp_x + g +
                                         (warp_z * (UP_Y + 2) + py) * (UP_X + 2)) + t % 2;
    const float4* w_from = w_tile + py * 16 * 32 + lane;

    float sum[2][UP_Y][4] = {};
    for (int c0 = 0; c0 < c_in; c0 += PIECE, weights += 64 * 32) {
        __syncthreads();  // nobody reads the last tile any more
        Halo::fill<1>(x_tile, x + c0 * voxels, c_in - c0, x0 - 1, y0 - 1, z0 + pz - 1, depth,
                      height, width);
        for (int e = threadIdx.x; e < 32 * 32; e += UP_THREADS) w_tile[e] = weights[e];
        __syncthreads();  // the tile and the weights are there
        #pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            #pragma unroll
            for (int m = 0; m < 3; ++m) {  // p_x + a_x: coarse voxel x - 1 + m
                float2 row[UP_Y + 1];
                #pragma unroll
                for (int r = 0; r < UP_Y + 1; ++r)
                    row[r] = from[2 * ((i * (UP_Y + 2) + r) * (UP_X + 2) + m)];
                #pragma unroll
                for (int px = m / 2; px < 2 && px <= m; ++px)
                    #pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float4 weight = w_from[((i * 2 + j) * 4 + px * 2 + m - px) * 32];
                        #pragma unroll
                        for (int r = 0; r < UP_Y; ++r)
                            mma(sum[px][r], weight, row[r + j]);
                    }
            }
        }
    }

    int left = 2 * (width - x0 - warp_x - 2 * t);  // this lane's D: coarse voxels 2t, 2t + 1
    if (left <= 0 || z0 + warp_z >= depth) return;
    #pragma unroll
    for (int q = 0; q < 2; ++q) {
        int o = group * UP_MAPS + q * 8 + g;
        if (o >= c_out) return;
        int row = (2 * (z0 + warp_z) + pz) * 2 * height + 2 * y0 + py;
        float* to = y + o * 8 * voxels + row * 2 * width + 2 * width - left;
        #pragma unroll
        for (int r = 0; r < UP_Y; ++r, to += 4 * width) {
            if (y0 + r >= height) continue;
            bool even = width % 2 == 0, both = left > 2;
            float4 old = even ? *(float4*)to : make_float4(to[0], to[1], both ? to[2] : 0.0f,
                                                           both ? to[3] : 0.0f);
            float value[4] = {old.x + sum[0][r][2 * q], old.y + sum[1][r][2 * q],
                              old.z + sum[0][r][2 * q + 1], old.w + sum[1][r][2 * q + 1]};
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                if (relu && value[e] < 0) value[e] = 0;
            if (even) {
                *(float4*)to = make_float4(value[0], value[1], value[2], value[3]);
            } else {
                to[0] = value[0], to[1] = value[1];
                if (both) to[2] = value[2], to[3] = value[3];
            }
        }
    }
}

// computes  dx, the gradient in the coarse tensor, of dy (c_in channels, the fine volume): a
//           convolution of stride 2 with 4 x 4 x 4 taps.
// threads   a block of 8 warps owns a tile of 16 x 8 x 2 coarse voxels in 64 coarse channels, a
//           warp 8 x 8 voxels of one plane in 32: D for 2 x 16 channels by 8 rows of voxels, 64
//           sums a lane in registers. Grid: tiles, groups of 64 channels, scans.
// memory    per block, channel of dy and parity in z and y, 34 x 9 x 3 elements are read once (in
//           32-byte sectors 1296; the parities in x one after the other, the second from the L1),
//           plus 16 x 64 weights. Writes 1 an output.
//           From shared memory a warp reads 72 float2 of dy and 32 float4 of weights for 256 mma:
//           272 x 128 bytes, no bank conflicts.
//           45,824 bytes of shared memory and at most 128 registers: two blocks fit on an SM.
// work      2 x 64 C_in FLOP an output, an eighth of it a fine voxel. Pieces of dy (8 channels, one
//           parity in z and y) that are 0 everywhere are left out, as in conv3d_tensor.
//           For a block and piece an SM of an H200 should need 3303 cycles for 2048 mma, 3261 for
//           its share of the L2's traffic, 2661 for shared memory and 2137 to issue 8547
//           instructions (predictions.py; not measured).
// no race   every output has one owner; __syncthreads() stands between filling shared memory and
//           reading it, and between reading it and filling it again
extern "C" __global__ void __launch_bounds__(UP_THREADS, 2)
folded_tensor_backward_coarse(const float* __restrict__ dy, const float* __restrict__ arranged,
                                float* __restrict__ dx, int c_in, int c_out, int depth, int height,
                                int width)
{
    typedef Tile<UP_X + 1, UP_Y + 1, UP_Z + 1> Halo;
    __shared__ float4 dy_tile[2 * Halo::SIZE];  // both parities in x
    __shared__ float4 w_tile[8 * 4 * 32];       // 8 taps, 4 x 16 channels
    int tiles_x = (width + UP_X - 1) / UP_X, tiles_y = (height + UP_Y - 1) / UP_Y;
    int x0 = blockIdx.x % tiles_x * UP_X, y0 = blockIdx.x / tiles_x % tiles_y * UP_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * UP_Z;
    long long voxels = (long long)depth * height * width;
    dy += blockIdx.z * c_in * 8 * voxels;  // this block's scan
    dx += blockIdx.z * c_out * voxels;
    long long first = (long long)blockIdx.y * ((c_in + PIECE - 1) / PIECE) * 64;
    const float4* weights = (const float4*)arranged + first * 4 * 32;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64 % 2;
    int half_maps = threadIdx.x / 128, o0 = blockIdx.y * UP_BACK_MAPS + half_maps * 32;
    const float2* from = (const float2*)(dy_tile + t / 2 * Halo::PITCH + warp_x + g +
                                         warp_z * (UP_X + 1) * (UP_Y + 1)) + t % 2;
    const float4* w_from = w_tile + half_maps * 64 + lane;

    float sum[2][UP_Y][4] = {};
    for (int piece = 0; piece < 4 * ((c_in + PIECE - 1) / PIECE); ++piece) {
        int c0 = piece / 4 * PIECE, pz = piece / 2 % 2, py = piece % 2;
        bool any = false;
        __syncthreads();  // nobody reads the last tile any more
        #pragma unroll 1
        for (int px = 0; px < 2; ++px)
            any |= Halo::fill<1, 2>(dy_tile + px * Halo::SIZE, dy + c0 * 8 * voxels, c_in - c0,
                                    2 * x0 - px, 2 * y0 - py, 2 * z0 - pz, 2 * depth, 2 * height,
                                    2 * width);
        if (!__syncthreads_or(any)) continue;
        #pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            __syncthreads();  // nobody reads the last weights any more
            for (int e = threadIdx.x; e < 8 * 4 * 32; e += UP_THREADS)
                w_tile[e] = weights[(piece * 2 + i) * 8 * 4 * 32 + e];
            __syncthreads();  // the weights of 8 taps are there
            if (o0 >= c_out) continue;
            #pragma unroll 1  // unrolled it would spill
            for (int m = 0; m < 4; ++m) {  // (p_x, a_x)
                float2 row[UP_Y + 1];
                #pragma unroll
                for (int r = 0; r < UP_Y + 1; ++r)
                    row[r] = from[2 * (m / 2 * Halo::SIZE + m % 2 +
                                       (i * (UP_Y + 1) + r) * (UP_X + 1))];
                #pragma unroll
                for (int j = 0; j < 2; ++j)
                    #pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float4 weight = w_from[((j * 4 + m) * 4 + half) * 32];
                        #pragma unroll
                        for (int r = 0; r < UP_Y; ++r)
                            mma(sum[half][r], weight, row[r + j]);
                    }
            }
        }
    }

    int left = width - x0 - warp_x - 2 * t;  // this lane's D: voxels 2t, 2t + 1 of each row
    if (left <= 0 || z0 + warp_z >= depth) return;
    #pragma unroll
    for (int q = 0; q < 4; ++q) {
        int o = o0 + q * 8 + g;
        if (o >= c_out) return;
        float* to = dx + o * voxels + ((z0 + warp_z) * height + y0) * width + width - left;
        #pragma unroll
        for (int r = 0; r < UP_Y; ++r, to += width) {
            if (y0 + r >= height) continue;
            to[0] = sum[q / 2][r][q % 2 * 2];
            if (left > 1) to[1] = sum[q / 2][r][q % 2 * 2 + 1];
        }
    }
}

// ---- the gradient of the weights: that of the folded ones first, then unfolded --------------------
//
// The sum over all voxels of all scans is split across many blocks; each writes its part, and
// folded_tensor_unfold adds the parts in their order. No atomics, hence the same bits every time.

#define UP_DW_X 16  // a tile has UP_DW_X x UP_DW_Y x UP_DW_Z coarse voxels
#define UP_DW_Y 4
#define UP_DW_Z 1
#define UP_DW_MAPS 32      // output channels of a block: two times the 16 rows of A
#define UP_DW_GROUPS 4     // groups of 8 coarse channels of a block
#define UP_DW_THREADS 256  // 2 x UP_DW_GROUPS warps

// computes  the part of the folded weights' gradient that some of the tiles contribute: parts[s]
//           (C_out, C_in, 4, 4, 4) is the sum over the s-th of S runs of tiles, of
//           dy[2i - 1 + f] x[i] for each tap f, x being the coarse tensor
// threads   a block of 8 warps owns, of 32 output and 32 input channels, the 16 taps of one parity
//           of dy in z and y; a warp 8 of the input channels and the 8 taps of one a_z: D for 8
//           taps by 2 x 16 output channels, 64 sums a lane in registers.
//           Grid: 4 S, groups of 32 input, groups of 32 output channels.
// memory    per tile of 16 x 4 x 1 coarse voxels (x, y, z) a block reads 18 x 5 x 2 elements of
//           each of its input and 128 of each of its output channels (in 32-byte sectors 320 and
//           128). The next tile is the next one along z, so half of its x is still in the L1.
//           Writes each of its weights once.
//           From shared memory a warp reads, for the 8 taps of 8 voxels, 16 floats of dy and 6 of x
//           (12 in the first row) for 16 mma, no bank conflicts.
// work      2 x 64 FLOP a pair of channels and coarse voxel. Tiles in which dy is 0 everywhere are
//           left out: adding products with 0 changes no bit.
//           For a block and tile an SM of an H200 should need 2166 cycles to issue 8663
//           instructions (half of them fill the tiles), 1812 for shared memory, 1652 for 1024 mma
//           and 1619 for its share of the L2's traffic (predictions.py; not measured).
// no race   every element of parts has one owner, who adds in a fixed order; __syncthreads() stands
//           between filling shared memory and reading it, and between reading and filling again
extern "C" __global__ void __launch_bounds__(UP_DW_THREADS, 2)
folded_tensor_backward_weight(const float* __restrict__ dy, const float* __restrict__ x,
                                float* __restrict__ parts, int scans, int c_in, int c_out,
                                int depth, int height, int width)
{
    typedef Tile<UP_DW_X, UP_DW_Y, UP_DW_Z> Inner;
    typedef Tile<UP_DW_X + 2, UP_DW_Y + 1, UP_DW_Z + 1> Halo;
    constexpr int MAP_GROUPS = UP_DW_MAPS / CHANNELS;
    __shared__ float4 dy_tile[2 * MAP_GROUPS * Inner::SIZE];  // both parities in x
    __shared__ float4 x_tile[UP_DW_GROUPS * Halo::SIZE];
    int tiles_x = (width + UP_DW_X - 1) / UP_DW_X, tiles_y = (height + UP_DW_Y - 1) / UP_DW_Y;
    int tiles_z = (depth + UP_DW_Z * PAIR - 1) / (UP_DW_Z * PAIR);
    long long voxels = (long long)depth * height * width;
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int c0 = blockIdx.y * UP_DW_GROUPS * CHANNELS, o0 = blockIdx.z * UP_DW_MAPS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, pz = blockIdx.x / 2 % 2;
    int py = blockIdx.x % 2, s = blockIdx.x / 4, i = threadIdx.x / 32 % 2, group = threadIdx.x / 64;
    // what this lane holds of A and of B: channel g of voxel t; of x at a_y = 0, one to the left
    const float* dy_from = (const float*)(dy_tile + g / 4 * Inner::PITCH + t) + g % 4;
    const float* x_from = (const float*)(x_tile + group * Halo::SIZE + g / 4 * Halo::PITCH + t +
                                         i * (UP_DW_X + 2) * (UP_DW_Y + 1)) + g % 4;

    float sum[8][2][4] = {};  // taps (a_y, p_x, a_x)
    long long tile = tiles * s / (gridDim.x / 4), last = tiles * (s + 1) / (gridDim.x / 4);
    int z0 = (int)(tile % tiles_z) * UP_DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * UP_DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * UP_DW_X;
    long long n = tile / tiles_z / tiles_y / tiles_x;
    for (; tile < last; ++tile, Inner::next(z0, y0, x0, n, depth, height, width)) {
        bool any = false;
        __syncthreads();  // nobody reads the last tile any more
        for (int px = 0; px < 2; ++px)
            any |= Inner::fill<MAP_GROUPS, 2, 2 * UP_DW_Z>(
                dy_tile + px * MAP_GROUPS * Inner::SIZE, dy + (n * c_out + o0) * 8 * voxels,
                c_out - o0, 2 * x0 + px, 2 * y0 + py, 2 * z0 + pz, 2 * depth, 2 * height,
                2 * width);
        if (!__syncthreads_or(any)) continue;
        Halo::fill<UP_DW_GROUPS, 1, UP_DW_Z>(x_tile, x + (n * c_in + c0) * voxels, c_in - c0,
                                             x0 - 1, y0 + py - 1, z0 + pz - 1, depth, height,
                                             width);
        __syncthreads();  // the tile is there
        #pragma unroll 1
        for (int x_ = 0; x_ < UP_DW_X; x_ += 8) {
            float2 near[UP_DW_Y + 1][3];
            #pragma unroll
            for (int r = 0; r < UP_DW_Y + 1; ++r) {
                #pragma unroll
                for (int m = 0; m < 3; ++m) {
                    const float* v = x_from + 4 * (r * (UP_DW_X + 2) + x_ + m);
                    near[r][m] = make_float2(v[0], v[4 * 4]);  // voxels t and t + 4
                }
                if (r < 1) continue;
                #pragma unroll
                for (int part = 0; part < 4; ++part) {  // parity in x, which 16 of the channels
                    int px = part / 2, half = part % 2;
                    const float* v = dy_from + 4 * ((px * MAP_GROUPS + 2 * half) * Inner::SIZE +
                                                    (r - 1) * UP_DW_X + x_);
                    const float* v8 = v + 4 * Inner::SIZE;  // 8 channels on
                    float4 gradient = make_float4(v[0], v8[0], v[4 * 4], v8[4 * 4]);
                    #pragma unroll
                    for (int a = 0; a < 4; ++a)  // a_y, a_x
                        mma(sum[a / 2 * 4 + px * 2 + a % 2][half], gradient,
                            near[r - 1 + a / 2][px + a % 2]);
                }
            }
        }
    }

    #pragma unroll
    for (int tap = 0; tap < 8; ++tap)
        #pragma unroll
        for (int q = 0; q < 8; ++q) {  // this lane's D: channels 2t, 2t + 1 in rows g, g + 8
            int o = o0 + q / 2 * 8 + g, c = c0 + group * CHANNELS + 2 * t + q % 2, px = tap / 2 % 2;
            int f = ((3 - pz - 2 * i) * 4 + 3 - py - tap / 4 * 2) * 4 + 3 - px - tap % 2 * 2;
            if (o < c_out && c < c_in)
                parts[(((long long)s * c_out + o) * c_in + c) * 64 + f] = sum[tap][q / 4][q % 4];
        }
}

#define UNFOLD_THREADS 256  // 64 folded taps of 4 filters

// computes  dw (filters, 3, 3, 3): the parts added up, and unfolded, dw[k] = dfold[2 - k] +
//           dfold[3 - k] along each axis; filters = C_out C_in
// threads   thread t sums folded tap t % 64 of a filter; 27 of each 64 then own an element of dw
// memory    reads 64 `count` / 27, writes 1 an output
// work      as many additions as reads, in the order of the parts, and 7 an output
// no race   every element of dw has one owner; __syncthreads() stands between the two steps
extern "C" __global__ void __launch_bounds__(UNFOLD_THREADS)
folded_tensor_unfold(const float* __restrict__ parts, float* __restrict__ dw, int count,
                       int filters)
{
    __shared__ float fold[UNFOLD_THREADS];
    long long t = (long long)blockIdx.x * UNFOLD_THREADS + threadIdx.x, size = 64LL * filters;
    float sum = 0;
    #pragma unroll 16  // so many reads under way at a time
    for (int s = 0; s < count; ++s)
        sum += t < size ? parts[s * size + t] : 0.0f;
    fold[threadIdx.x] = sum;
    __syncthreads();
    int k = threadIdx.x % 64;
    if (t >= size || k >= 27) return;
    const float* own = fold + threadIdx.x - k + (2 - k / 9) * 16 + (2 - k / 3 % 3) * 4 + 2 - k % 3;
    float unfolded = 0;
    #pragma unroll
    for (int e = 0; e < 8; ++e)
        unfolded += own[e / 4 * 16 + e / 2 % 2 * 4 + e % 2];
    dw[t / 64 * 27 + k] = unfolded;
}

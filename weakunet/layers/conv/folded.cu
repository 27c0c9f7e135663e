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
// Maps, their gradients and the arranged weights are packed (packed.py). depth, height, width are
// the coarse volume's; a fine volume has fewer than 2^31 voxels.
#include "tensor_core.cuh"

#define UP_MAPS 16       // output channels of a forward block: the rows of A
#define UP_BACK_MAPS 64  // coarse channels of a backward block: 4 times the rows of A
#define UP_X 16          // a block's tile has UP_X x UP_Y x UP_Z coarse voxels
#define UP_Y 8           // a warp works on 8 x UP_Y of one plane
#define UP_Z 2
#define UP_THREADS 256
// bytes of dynamic shared memory
#define UP_BYTES 67456
#define UP_BACK_BYTES 91904

// computes  the folded weights in the order in which the kernels read them, rounded:
//           arranged[group of output channels, packed group of input channels, tap, which 16 of the
//           group's output channels, lane] as in tensor.cu; a tap is (p and a along z and y
//           as p_z, p_y, a_z, a_y, then p_x, a_x). backward = 0: groups of 16 output channels;
//           backward != 0: the weights that take dy back to the coarse tensor, groups of 64; c_in
//           and c_out are the channels of the convolution that uses them.
// threads   thread t owns word t of arranged, t < total
// memory    reads at most 8 elements, writes 1 per output
// work      at most 8 additions and 1 rounding per output
// no race   every arranged[t] has one owner, and nothing that is read is written
extern "C" __global__ void folded_tensor_weights(const float* __restrict__ w,
                                                 stored* __restrict__ arranged, int c_in, int c_out,
                                                 int backward, long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int maps = backward ? UP_BACK_MAPS : UP_MAPS, groups = (c_in + INNER - 1) / INNER;
    int part = (int)(t % 4), lane = (int)(t / 4 % 32);
    long long rest = t / (8 * maps);  // a tap's weights: maps x 8 words
    int tap = (int)(rest % 64);
    int c = (int)(rest / 64 % groups) * INNER + (lane % 4 * 2 + part / 2) * PAIR;
    int o = (int)(rest / 64 / groups) * maps + (int)(t / 128 % (maps / 16)) * 16 +
            channel_of_row(part % 2 * 8 + lane / 4);
    int p[3] = {tap / 32, tap / 16 % 2, tap / 2 % 2}, a[3] = {tap / 8 % 2, tap / 4 % 2, tap % 2};
    float sum[PAIR] = {};
    for (int e = 0; e < 8 * PAIR; ++e) {
        int place = 0, plus[3] = {e / 4 % 2, e / 2 % 2, e % 2}, ch = c + e / 8;
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
    ((float*)arranged)[t] = to_word(sum[0], sum[PAIR - 1]);
}

// computes  y += the folded convolution of x, the coarse tensor (c_in channels). y holds what the
//           skip connection contributed, and the bias. relu != 0: then max(y, 0); masked != 0: then
//           0 where roi, one plain map per scan, is not positive. Then y is rounded.
// threads   a block of 8 warps owns the outputs above 16 x 8 x 2 coarse voxels (x, y, z) in 16
//           output channels, of one parity in z and both in y and x; a warp those of 8 x 8 coarse
//           voxels of one plane with one parity in y and both in x (so that rows are written
//           whole): D for 2 x 16 (parity in x, channels) by 8 rows, 64 sums per lane in registers.
//           Grid: tiles, groups of 16 output channels x 2 parities in z, scans.
// overlap   a packed group of input channels is multiplied in two steps; in each, half of the next
//           group and of its weights are copied to a second buffer.
// memory    per block and input channel a halo of 18 x 10 x 3 elements is read once, for 1024
//           outputs per channel, plus 32 x 16 weights. Reads and writes 1 of y per output.
//           From shared memory a warp reads 54 float2 of x and 16 float4 of weights for 128 mma:
//           172 x 128 bytes, no bank conflicts.
//           UP_BYTES of shared memory and at most 128 registers: two blocks fit on an SM.
// work      2 x 8 C_in FLOP per output; on the upsampled tensor it would be 2 x 27 C_in
// no race   every output has one owner, the only one who reads it. One __syncthreads() per group
//           of channels stands between the copies and whoever reads them, and between the last reader
//           of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(UP_THREADS, 2)
folded_tensor_forward(const stored* __restrict__ x, const stored* __restrict__ arranged,
                      const float* __restrict__ roi, stored* __restrict__ y, int c_in, int c_out,
                      int depth, int height, int width, int relu, int masked)
{
    typedef Tile<UP_X + 2, UP_Y + 2, UP_Z + 1> Halo;
    typedef Halo::Fill<1, 2, UP_THREADS> Fill;
    constexpr int WEIGHTS = 32 * 32, SIZE = Halo::SIZE + WEIGHTS;  // 32 taps, 32 lanes
    static_assert(16 * 2 * SIZE == UP_BYTES, "");
    extern __shared__ float4 shared_memory[];  // x, weights, x, weights
    int tiles_x = (width + UP_X - 1) / UP_X, tiles_y = (height + UP_Y - 1) / UP_Y;
    int x0 = blockIdx.x % tiles_x * UP_X, y0 = blockIdx.x / tiles_x % tiles_y * UP_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * UP_Z, pz = blockIdx.y % 2, group = blockIdx.y / 2;
    long long voxels = (long long)depth * height * width;
    int groups = (c_in + INNER - 1) / INNER;
    const float4* weights = (const float4*)arranged + (group * groups * 64LL + pz * 32) * 32;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64 % 2, py = threadIdx.x / 128;
    // words 2t, 2t + 1 of the voxel that this lane holds of B: of row 0 at a_z = 0, one to the left
    // in x; and what it holds of A, of this parity's first tap
    const float2* from = (const float2*)(shared_memory + t / 2 * Halo::PITCH + warp_x + g +
                                         (warp_z * (UP_Y + 2) + py) * (UP_X + 2)) + t % 2;
    const float4* w_from = shared_memory + Halo::SIZE + py * 16 * 32 + lane;

    auto fetch = [&](int piece, int part) {  // a piece of x: one group of its channels
        float4* to = shared_memory + piece % 2 * SIZE;
        fetch_group<Fill>(part, to, x, blockIdx.z, c_in, piece * INNER, x0 - 1, y0 - 1, z0 + pz - 1,
                          depth, height, width);
        for (int e = threadIdx.x; e < WEIGHTS / 2; e += UP_THREADS)
            copy_async(to + Halo::SIZE + part * WEIGHTS / 2 + e,
                       weights + piece * 64LL * 32 + part * WEIGHTS / 2 + e);
    };

    for (int part = 0; part < 2; ++part)
        fetch(0, part);
    float sum[2][UP_Y][4] = {};
    for (int piece = 0; piece < groups; ++piece) {
        wait_for_copies();
        __syncthreads();  // the tile and the weights are there, those before are done with
        #pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            if (piece + 1 < groups) fetch(piece + 1, i);
            #pragma unroll
            for (int m = 0; m < 3; ++m) {  // p_x + a_x: coarse voxel x - 1 + m
                float2 row[UP_Y + 1];
                #pragma unroll
                for (int r = 0; r < UP_Y + 1; ++r)
                    row[r] = from[2 * (piece % 2 * SIZE + (i * (UP_Y + 2) + r) * (UP_X + 2) + m)];
                #pragma unroll
                for (int px = m / 2; px < 2 && px <= m; ++px)
                    #pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float4 weight =
                            w_from[piece % 2 * SIZE + ((i * 2 + j) * 4 + px * 2 + m - px) * 32];
                        #pragma unroll
                        for (int r = 0; r < UP_Y; ++r)
                            mma(sum[px][r], weight, row[r + j]);
                    }
            }
        }
    }

    int left = 2 * (width - x0 - warp_x - 2 * t);  // this lane's D: coarse voxels 2t, 2t + 1
    if (left <= 0 || z0 + warp_z >= depth) return;
    int groups_out = (c_out + INNER - 1) / INNER;
    roi += blockIdx.z * 8 * voxels;
    #pragma unroll
    for (int q = 0; q < 2 / PAIR; ++q) {  // packed groups, of which this lane has word g
        int group_out = group * (2 / PAIR) + q;
        if (group_out >= groups_out) return;
        int voxel = ((2 * (z0 + warp_z) + pz) * 2 * height + 2 * y0 + py) * 2 * width + 2 * width -
                    left;
        long long first = (blockIdx.z * groups_out + group_out) * 8 * voxels;
        #pragma unroll
        for (int r = 0; r < UP_Y; ++r, voxel += 4 * width)
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                if (y0 + r >= height || e >= left) continue;
                float* word = (float*)y + (first + voxel + e) * 8 + g;
                float old = *word, value[PAIR];
                bool keep = !masked || roi[voxel + e] > 0;
                #pragma unroll
                for (int p = 0; p < PAIR; ++p) {
                    value[p] = from_word(old, p) + sum[e % 2][r][(q + p) * 2 + e / 2];
                    if (!keep || (relu && value[p] < 0)) value[p] = 0;
                }
                *word = to_word(value[0], value[PAIR - 1]);
            }
    }
}

// computes  dx, the gradient with respect to the coarse tensor, of dy (c_in channels, the fine
//           volume): a convolution of stride 2 with 4 x 4 x 4 taps. masked != 0: 0 where mask, of
//           dx's shape, is not positive (the backward of the ReLU whose output it is). Then dx is
//           rounded.
// threads   a block of 8 warps owns a tile of 16 x 8 x 2 coarse voxels in 64 coarse channels, a
//           warp 8 x 8 voxels of one plane in 32: D for 2 x 16 channels by 8 rows of voxels, 64
//           sums per lane in registers. Grid: tiles, groups of 64 channels, scans.
// overlap   a piece, a packed group of dy in one parity in z and y, is multiplied in two steps of 8
//           taps. Meanwhile the next piece (one parity in x per step) and the next step's weights
//           are copied to a second buffer.
// memory    per block, channel of dy and parity in z and y, 34 x 9 x 3 elements are read once, plus
//           16 x 64 weights. Writes 1 per output.
//           From shared memory a warp reads 72 float2 of dy and 32 float4 of weights for 256 mma:
//           272 x 128 bytes, no bank conflicts.
//           UP_BACK_BYTES of shared memory and at most 128 registers: two blocks fit on an SM of an
//           H100.
// work      2 x 64 C_in FLOP per output, an eighth of it per fine voxel
// no race   every output has one owner. One __syncthreads() per step stands between the copies and
//           whoever reads them, and between the last reader of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(UP_THREADS, 2)
folded_tensor_backward_coarse(const stored* __restrict__ dy, const stored* __restrict__ arranged,
                              const stored* __restrict__ mask, stored* __restrict__ dx, int c_in,
                              int c_out, int depth, int height, int width, int masked)
{
    typedef Tile<UP_X + 1, UP_Y + 1, UP_Z + 1> Halo;
    typedef Halo::Fill<1, 2, UP_THREADS, 2> Fill;
    constexpr int WEIGHTS = 8 * 4 * 32;  // 8 taps, 4 x 16 channels, in float4
    static_assert(16 * 2 * (2 * Halo::SIZE + WEIGHTS) == UP_BACK_BYTES, "");
    extern __shared__ float4 shared_memory[];  // dy with both parities in x, twice; weights
    float4* w_tile = shared_memory + 4 * Halo::SIZE;
    int tiles_x = (width + UP_X - 1) / UP_X, tiles_y = (height + UP_Y - 1) / UP_Y;
    int x0 = blockIdx.x % tiles_x * UP_X, y0 = blockIdx.x / tiles_x % tiles_y * UP_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * UP_Z;
    long long voxels = (long long)depth * height * width;
    int steps = (c_in + INNER - 1) / INNER * 8;  // step s: i = s % 2 of piece s / 2
    const float4* weights = (const float4*)arranged + (long long)blockIdx.y * steps * WEIGHTS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64 % 2;
    int half_maps = threadIdx.x / 128, o0 = blockIdx.y * UP_BACK_MAPS + half_maps * 32;
    const float2* from = (const float2*)(shared_memory + t / 2 * Halo::PITCH + warp_x + g +
                                         warp_z * (UP_X + 1) * (UP_Y + 1)) + t % 2;

    auto fetch = [&](int s, int part) {  // of piece s / 2, with parity s % 2 in x
        int pz = s / 4 % 2, py = s / 2 % 2, px = s % 2;
        fetch_group<Fill>(part, shared_memory + (s / 2 % 2 * 2 + px) * Halo::SIZE, dy, blockIdx.z,
                          c_in, s / 8 * INNER, 2 * x0 - px, 2 * y0 - py, 2 * z0 - pz, 2 * depth,
                          2 * height, 2 * width);
    };
    auto fetch_weights = [&](int s) {
        for (int e = threadIdx.x; e < WEIGHTS; e += UP_THREADS)
            copy_async(w_tile + s % 2 * WEIGHTS + e, weights + (long long)s * WEIGHTS + e);
    };

    fetch_weights(0);
    for (int e = 0; e < 4; ++e)
        fetch(e / 2, e % 2);
    float sum[2][UP_Y][4] = {};
    #pragma unroll 1
    for (int s = 0; s < steps; ++s) {
        wait_for_copies();
        __syncthreads();  // this step's tile and weights are there, the last step's are done with
        if (s + 1 < steps) fetch_weights(s + 1);
        const float2* rows = from + 2 * (s / 2 % 2 * 2 * Halo::SIZE +
                                         s % 2 * (UP_Y + 1) * (UP_X + 1));
        const float4* w_from = w_tile + s % 2 * WEIGHTS + half_maps * 64 + lane;
        #pragma unroll 1  // unrolled it would spill
        for (int m = 0; m < 4; ++m) {  // (p_x, a_x)
            if (m % 2 == 0 && s + 2 < steps) fetch(s + 2, m / 2);
            float2 row[UP_Y + 1];
            #pragma unroll
            for (int r = 0; r < UP_Y + 1; ++r)
                row[r] = rows[2 * (m / 2 * Halo::SIZE + m % 2 + r * (UP_X + 1))];
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

    int left = width - x0 - warp_x - 2 * t;  // this lane's D: voxels 2t, 2t + 1 of each row
    if (left <= 0 || z0 + warp_z >= depth) return;
    int groups_out = (c_out + INNER - 1) / INNER;
    #pragma unroll
    for (int q = 0; q < 4 / PAIR; ++q) {  // packed groups, of which this lane has word g
        int group = o0 / INNER + q;
        if (group >= groups_out) return;
        long long place = (blockIdx.z * groups_out + group) * voxels +
                          ((z0 + warp_z) * height + y0) * width + width - left;
        #pragma unroll
        for (int r = 0; r < UP_Y; ++r, place += width)
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                if (y0 + r >= height || e >= left) continue;
                long long word = (place + e) * 8 + g;
                float gate = masked ? ((const float*)mask)[word] : 0.0f, value[PAIR];
                #pragma unroll
                for (int p = 0; p < PAIR; ++p) {
                    value[p] = sum[q * PAIR / 2][r][(q * PAIR % 2 + p) * 2 + e];
                    if (masked && !(from_word(gate, p) > 0)) value[p] = 0;
                }
                ((float*)dx)[word] = to_word(value[0], value[PAIR - 1]);
            }
    }
}

// ---- the gradient of the weights: that of the folded ones first, then unfolded ------------------
//
// The sum over all voxels of all scans is split across many blocks; each writes its part, and
// folded_tensor_unfold (parts.cu) adds them in their order. No atomics, hence the same bits every time.

#define UP_DW_X 16  // a tile has UP_DW_X x UP_DW_Y x UP_DW_Z coarse voxels
#define UP_DW_Y 4
#define UP_DW_Z 1
#define UP_DW_MAPS 32      // output channels of a block: two times the 16 rows of A
#define UP_DW_GROUPS 4     // groups of 8 coarse channels of a block
#define UP_DW_THREADS 256  // 2 x UP_DW_GROUPS warps
#define UP_DW_BYTES 82432  // of dynamic shared memory: two tiles of dy and of x

// computes  the part of the folded weights' gradient that some of the tiles contribute: parts[s]
//           (C_out, C_in, 4, 4, 4) is the sum over the s-th of S runs of tiles, of
//           dy[2i - 1 + f] x[i] for each tap f, x being the coarse tensor
// threads   a block of 8 warps owns, of 32 output and 32 input channels, the 16 taps of one parity
//           of dy in z and y; a warp 8 of the input channels and the 8 taps of one a_z: D for 8
//           taps by 2 x 16 output channels, 64 sums per lane in registers.
//           Grid: 4 S, groups of 32 input, groups of 32 output channels.
// overlap   a tile is multiplied in two parts, 8 voxels along x each; meanwhile half of the next
//           tile is copied to a second buffer. In bfloat16 pairs of channels become pairs of
//           voxels, once a tile is there.
// memory    per tile of 16 x 4 x 1 coarse voxels (x, y, z; in bfloat16 twice as deep) a block reads
//           18 x 5 x 2 elements of each of its input and 128 of each of its output channels, in
//           whole sectors. Writes each of its weights once.
//           From shared memory a warp reads, for the 8 taps of 8 voxels, 16 floats of dy and 6 of x
//           (12 in the first row) for 16 mma, no bank conflicts.
//           UP_DW_BYTES of shared memory and at most 128 registers: two blocks fit on an SM of an
//           H100.
// work      2 x 64 FLOP per pair of channels and coarse voxel
// no race   every element of parts has one owner, who adds in a fixed order. One __syncthreads()
//           per tile stands between the copies and whoever reads them, and between the last reader
//           of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(UP_DW_THREADS, 2)
folded_tensor_backward_weight(const stored* __restrict__ dy, const stored* __restrict__ x,
                              float* __restrict__ parts, int scans, int c_in, int c_out, int depth,
                              int height, int width)
{
    typedef Tile<UP_DW_X, UP_DW_Y, UP_DW_Z> Inner;
    typedef Tile<UP_DW_X + 2, UP_DW_Y + 1, UP_DW_Z + 1> Halo;
    constexpr int MAP_GROUPS = UP_DW_MAPS / CHANNELS, DY_SIZE = MAP_GROUPS * Inner::SIZE;
    constexpr int SIZE = 2 * DY_SIZE + UP_DW_GROUPS * Halo::SIZE;  // dy with both parities in x, x
    typedef Inner::Fill<MAP_GROUPS, 1, UP_DW_THREADS, 2, 2 * UP_DW_Z> FillDy;
    typedef Halo::Fill<UP_DW_GROUPS, 2, UP_DW_THREADS, 1, UP_DW_Z> FillX;
    static_assert(16 * 2 * SIZE == UP_DW_BYTES, "");
    extern __shared__ float4 shared_memory[];
    int tiles_x = (width + UP_DW_X - 1) / UP_DW_X, tiles_y = (height + UP_DW_Y - 1) / UP_DW_Y;
    int tiles_z = (depth + UP_DW_Z * PAIR - 1) / (UP_DW_Z * PAIR);
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int c0 = blockIdx.y * UP_DW_GROUPS * CHANNELS, o0 = blockIdx.z * UP_DW_MAPS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, pz = blockIdx.x / 2 % 2;
    int py = blockIdx.x % 2, s = blockIdx.x / 4, i = threadIdx.x / 32 % 2, group = threadIdx.x / 64;
    // what this lane holds of A and of B: channel g of voxel t; of x at a_y = 0, one to the left
    const float* dy_from = (const float*)(shared_memory + g / 4 * Inner::PITCH + t) + g % 4;
    const float* x_from = (const float*)(shared_memory + 2 * DY_SIZE + group * Halo::SIZE +
                                         g / 4 * Halo::PITCH + t +
                                         i * (UP_DW_X + 2) * (UP_DW_Y + 1)) + g % 4;

    float sum[8][2][4] = {};  // taps (a_y, p_x, a_x)
    long long tile = tiles * s / (gridDim.x / 4);
    int left = (int)(tiles * (s + 1) / (gridDim.x / 4) - tile);  // tiles, this one among them
    int z0 = (int)(tile % tiles_z) * UP_DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * UP_DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * UP_DW_X;
    int n = (int)(tile / tiles_z / tiles_y / tiles_x);

    auto fetch = [&](int part, int buffer) {  // of the tile at x0, y0, z0: dy with p_x = part
        float4* to = shared_memory + buffer * SIZE;
        fetch_group<FillDy>(0, to + part * DY_SIZE, dy, n, c_out, o0, 2 * x0 + part, 2 * y0 + py,
                            2 * z0 + pz, 2 * depth, 2 * height, 2 * width);
        fetch_group<FillX>(part, to + 2 * DY_SIZE, x, n, c_in, c0, x0 - 1, y0 + py - 1, z0 + pz - 1,
                           depth, height, width);
    };

    for (int part = 0; part < 2 && left > 0; ++part)
        fetch(part, 0);
    for (int buffer = 0; left > 0; buffer ^= 1) {
        wait_for_copies();
        for (int px = 0; px < 2; ++px)
            FillDy::pair_voxels(shared_memory + buffer * SIZE + px * DY_SIZE);
        FillX::pair_voxels(shared_memory + buffer * SIZE + 2 * DY_SIZE);
        __syncthreads();  // the tile is there, and nobody reads the one before any more
        --left;
        Inner::next(z0, y0, x0, n, depth, height, width);
        #pragma unroll 1
        for (int part = 0; part < 2; ++part) {
            if (left > 0) fetch(part, buffer ^ 1);
            int x_ = part * 8;
            float2 near[UP_DW_Y + 1][3];
            #pragma unroll
            for (int r = 0; r < UP_DW_Y + 1; ++r) {
                #pragma unroll
                for (int m = 0; m < 3; ++m) {
                    const float* v = x_from + 4 * (buffer * SIZE + r * (UP_DW_X + 2) + x_ + m);
                    near[r][m] = make_float2(v[0], v[4 * 4]);  // voxels t and t + 4
                }
                if (r < 1) continue;
                #pragma unroll
                for (int q = 0; q < 4; ++q) {  // parity in x, which 16 of the channels
                    int px = q / 2, half = q % 2;
                    const float* v = dy_from + 4 * (buffer * SIZE + px * DY_SIZE +
                                                    2 * half * Inner::SIZE +
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

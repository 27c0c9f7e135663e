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
// memory    reads 1 element, writes 1 element per output
// work      1 rounding per output
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
#define CONV_BYTES 87808   // of dynamic shared memory: two tiles and the weights of 9 taps, twice
#define CONV_STAGE 11520   // more of it where factors are pairs

// computes  y as at the top of naive.cu, for k = 3; without b where bias = 0. With dy for x,
//           flipped weights and no bias this is dx. What comes next is computed on the way out:
//           relu != 0: max(y, 0); masked: 0 where mask is not positive. With masked = 1 it has y's
//           shape (a ReLU's backward: its output), with 2 it is one map per scan (the ROI).
// threads   a block of 8 warps owns a tile of 16 x 8 x 4 voxels (x, y, z) in 32 output channels, a
//           warp 8 x 8 voxels of one plane: D for 2 x 16 channels by 8 rows of voxels, 64 sums per
//           lane in registers. Grid: tiles, groups of 32 output channels, scans.
// overlap   8 input channels (16 in bfloat16) are multiplied in three steps, one per plane of taps.
//           Meanwhile a third of the next channels' tile and the next step's weights are copied to
//           a second buffer; at the end of a step each thread rounds what it has copied.
// memory    per block and input channel the halo of 18 x 10 x 6 elements is read once, for 512
//           voxels: 2.1 elements of x per voxel and input channel (3.75 counted in the 32-byte
//           sectors that really move: a row starts one voxel before a sector), plus 27 x 32
//           weights. Writes 1 per output.
//           From shared memory a warp reads 10 float2 of x, which serve 3 taps along y, and 6
//           float4 of weights for 48 mma: 44 x 128 bytes, no bank conflicts.
//           CONV_BYTES of shared memory (CONV_STAGE more for pairs) and at most 128 registers: two
//           blocks fit on an SM of an H100, one on an A100's or a GeForce's.
// work      2 x 27 C_in FLOP per output
// no race   every output has one owner. One __syncthreads() per step stands between the copies and
//           whoever reads them, and between the last reader of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv3d_tensor(const float* __restrict__ x, const float* __restrict__ arranged,
              const float* __restrict__ b, const float* __restrict__ mask, float* __restrict__ y,
              int c_in, int c_out, int depth, int height, int width, int bias, int relu, int masked)
{
    typedef Tile<TILE_X + 2, TILE_Y + 2, TILE_Z + 2> Halo;
    typedef Halo::Fill<1, 3, THREADS> Fill;
    static_assert(16 * 2 * (Halo::SIZE + 9 * FRAGMENTS) == CONV_BYTES, "");
    static_assert(16 * Fill::STAGE == CONV_STAGE * (PAIR - 1), "");
    extern __shared__ float4 shared_memory[];
    float4* w_tile = shared_memory + 2 * Halo::SIZE;
    float4* stage = w_tile + 2 * 9 * FRAGMENTS;
    int tiles_x = (width + TILE_X - 1) / TILE_X, tiles_y = (height + TILE_Y - 1) / TILE_Y;
    int x0 = blockIdx.x % tiles_x * TILE_X, y0 = blockIdx.x / tiles_x % tiles_y * TILE_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * TILE_Z;
    long long voxels = (long long)depth * height * width;
    x += blockIdx.z * c_in * voxels;  // this block's scan
    y += blockIdx.z * c_out * voxels;
    mask += blockIdx.z * (masked == 2 ? 1 : c_out) * voxels;
    int steps = (c_in + PIECE - 1) / PIECE * 3;
    const float4* weights = (const float4*)arranged + (long long)blockIdx.y * steps * 9 * FRAGMENTS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64;
    // channels 2t, 2t + 1 of the voxel that this lane holds of B: of row 0 at tap (0, 0, 0)
    const float2* from = (const float2*)(shared_memory + t / 2 * Halo::PITCH + warp_x + g +
                                         warp_z * (TILE_X + 2) * (TILE_Y + 2)) + t % 2;

    // Steps are numbered through: step s multiplies piece s / 3 of the channels by the taps of
    // plane s % 3. `fetch` starts to copy the tile's part s % 3 of piece s / 3, `settle` rounds it.
    auto fetch = [&](int s) {
        int c0 = s / 3 * PIECE;
        Fill::fetch(s % 3, shared_memory + s / 3 % 2 * Halo::SIZE, stage, x + c0 * voxels,
                    c_in - c0, x0 - 1, y0 - 1, z0 - 1, depth, height, width);
    };
    auto settle = [&](int s) {
        Fill::settle(s % 3, shared_memory + s / 3 % 2 * Halo::SIZE, stage);
    };
    auto fetch_weights = [&](int s) {
        for (int e = threadIdx.x; e < 9 * FRAGMENTS; e += THREADS)
            copy_async(w_tile + s % 2 * 9 * FRAGMENTS + e, weights + s * 9 * FRAGMENTS + e);
    };

    fetch_weights(0);
    for (int s = 0; s < 3; ++s) {
        fetch(s);
        wait_for_copies();
        settle(s);
    }
    float sum[2][TILE_Y][4] = {};
    #pragma unroll 1
    for (int s = 0; s < steps; ++s) {
        __syncthreads();  // this step's tile and weights are there, the last step's are done with
        if (s + 3 < steps) fetch(s + 3);
        if (s + 1 < steps) fetch_weights(s + 1);
        const float2* rows = from + 2 * (s / 3 % 2 * Halo::SIZE +
                                         s % 3 * (TILE_Y + 2) * (TILE_X + 2));
        const float4* w_now = w_tile + s % 2 * 9 * FRAGMENTS + lane;
        #pragma unroll 1  // unrolled it would spill on sm_80
        for (int m = 0; m < 3; ++m) {
            float2 row[TILE_Y + 2];
            #pragma unroll
            for (int r = 0; r < TILE_Y + 2; ++r)
                row[r] = rows[2 * (r * (TILE_X + 2) + m)];
            #pragma unroll
            for (int j = 0; j < 3; ++j)
                #pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float4 weight = w_now[(j * 3 + m) * FRAGMENTS + half * 32];
                    #pragma unroll
                    for (int r = 0; r < TILE_Y; ++r)
                        mma(sum[half][r], weight, row[r + j]);
                }
        }
        wait_for_copies();
        if (s + 3 < steps) settle(s + 3);
    }

    int left = width - x0 - warp_x - 2 * t;  // this lane's D: voxels 2t, 2t + 1 of each row
    if (left <= 0 || z0 + warp_z >= depth) return;
    #pragma unroll
    for (int q = 0; q < 4; ++q) {
        int o = blockIdx.y * MAPS + q * 8 + g;
        if (o >= c_out) return;
        float shift = bias ? b[o] : 0.0f;
        long long place = o * voxels + ((z0 + warp_z) * height + y0) * width + width - left;
        const float* gate = mask + place - (masked == 2 ? o * voxels : 0);
        #pragma unroll
        for (int r = 0; r < TILE_Y; ++r, place += width, gate += width) {
            if (y0 + r >= height) continue;
            float value[2];
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                value[e] = sum[q / 2][r][q % 2 * 2 + e] + shift;
                if (relu && value[e] < 0) value[e] = 0;
                if (masked && e < left && !(gate[e] > 0)) value[e] = 0;
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

// ---- the gradients of the weights and the bias -------------------------------------------------
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
#define DW_PARTS 4      // a tile is multiplied, and the next one filled, in DW_Z x DW_X / 8 parts
#define DW_BYTES 89600  // of dynamic shared memory: two tiles of dy and of x
#define DW_STAGE 11008  // more of it where factors are pairs

// db from what the threads of a block have put into shared memory, 4 channels each, LANES threads
// the same ones. Thread t writes channel t, the sum in the order of the threads.
template <int LANES>
static __device__ __forceinline__ void sum_bias(const float* sums, float* __restrict__ db,
                                                int channels)
{
    int t = threadIdx.x;
    if (t >= DW_MAPS || t >= channels) return;
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane)
        sum += sums[(t / 4 * LANES + lane) * 4 + t % 4];
    db[t] = sum;
}

// computes  the part of dw and db that some of the tiles contribute: parts[s], (C_out, C_in, 3, 3,
//           3) and then (C_out), is the sum over the s-th of S runs of tiles
// threads   a block of 6 warps owns 32 output and 16 input channels, a warp 8 of the input channels
//           and the 9 taps (i, 0..2, 0..2) of one i: D for 9 taps by 2 x 16 output channels, 72
//           sums per lane in registers. Grid: S, groups of 16 input, groups of 32 output channels;
//           the first group of input channels sums db as well, unrounded.
// overlap   a tile is multiplied in four parts, 8 voxels along x of one plane each; meanwhile a
//           quarter of the next tile is copied to a second buffer. At the end of a part each thread
//           rounds what it has copied.
// memory    per tile of 16 x 4 x 2 voxels (x, y, z) a block reads 18 x 6 x 4 elements of each of
//           its input and 128 of each of its output channels (in 32-byte sectors 768 and 128). The
//           next tile is the next one along z, so half of its x is still in the L1.
//           Writes each of its weights once.
//           From shared memory a warp reads, for the 9 taps of 8 voxels, 8 floats of dy and at most
//           18 of x (6 of them new in a row below another) for 18 mma, no bank conflicts.
//           DW_BYTES of shared memory (DW_STAGE more for pairs), at most 168 registers: two blocks
//           fit on an SM of an H100.
// work      2 N D H W FLOP per weight
// no race   every element of parts has one owner, who adds in a fixed order. One __syncthreads()
//           per tile stands between the copies and whoever reads them, and between the last reader
//           of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(DW_THREADS, 2)
conv3d_tensor_backward_weight(const float* __restrict__ dy, const float* __restrict__ x,
                              float* __restrict__ parts, int scans, int c_in, int c_out, int depth,
                              int height, int width)
{
    typedef Tile<DW_X, DW_Y, DW_Z> Inner;
    typedef Tile<DW_X + 2, DW_Y + 2, DW_Z + 2> Halo;
    typedef Inner::Fill<DW_MAPS / CHANNELS, DW_PARTS, DW_THREADS, 1, DW_Z> FillDy;
    typedef Halo::Fill<DW_GROUPS, DW_PARTS, DW_THREADS, 1, DW_Z> FillX;
    constexpr int DY_SIZE = DW_MAPS / CHANNELS * Inner::SIZE;
    constexpr int SIZE = DY_SIZE + DW_GROUPS * Halo::SIZE;
    static_assert(16 * 2 * SIZE == DW_BYTES, "");
    static_assert(16 * (FillDy::STAGE + FillX::STAGE) == DW_STAGE * (PAIR - 1), "");
    extern __shared__ float4 shared_memory[];  // dy, x, dy, x, stage
    float4* stage = shared_memory + 2 * SIZE;
    int tiles_x = (width + DW_X - 1) / DW_X, tiles_y = (height + DW_Y - 1) / DW_Y;
    int tiles_z = (depth + DW_Z * PAIR - 1) / (DW_Z * PAIR);
    long long voxels = (long long)depth * height * width;
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int c0 = blockIdx.y * DW_GROUPS * CHANNELS, o0 = blockIdx.z * DW_MAPS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int i = threadIdx.x / 32 % 3, group = threadIdx.x / 96;  // this warp's taps and input channels
    // what this lane holds of A and of B: channel g of voxel t; of x at tap (i, 0, 0)
    const float* dy_from = (const float*)(shared_memory + g / 4 * Inner::PITCH + t) + g % 4;
    const float* x_from = (const float*)(shared_memory + DY_SIZE + group * Halo::SIZE +
                                         g / 4 * Halo::PITCH + t +
                                         i * (DW_X + 2) * (DW_Y + 2)) + g % 4;

    float sum[9][2][4] = {};
    float4 bias = make_float4(0, 0, 0, 0);  // of the 4 output channels that this thread copies
    long long tile = tiles * blockIdx.x / gridDim.x;
    int left = (int)(tiles * (blockIdx.x + 1) / gridDim.x - tile);  // tiles, this one among them
    int z0 = (int)(tile % tiles_z) * DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * DW_X;
    int n = (int)(tile / tiles_z / tiles_y / tiles_x);

    auto fetch = [&](int part, int buffer) {  // of the tile at x0, y0, z0 of scan n
        float4* to = shared_memory + buffer * SIZE;
        const float* from = dy + ((long long)n * c_out + o0) * voxels;
        FillDy::fetch(part, to, stage, from, c_out - o0, x0, y0, z0, depth, height, width);
        from = x + ((long long)n * c_in + c0) * voxels;
        FillX::fetch(part, to + DY_SIZE, stage + FillDy::STAGE, from, c_in - c0, x0 - 1, y0 - 1,
                     z0 - 1, depth, height, width);
    };
    auto settle = [&](int part, int buffer) {
        float4* to = shared_memory + buffer * SIZE;
        float4 more = FillDy::settle(part, to, stage);
        bias.x += more.x, bias.y += more.y, bias.z += more.z, bias.w += more.w;
        FillX::settle(part, to + DY_SIZE, stage + FillDy::STAGE);
    };

    for (int part = 0; part < DW_PARTS && left > 0; ++part) {
        fetch(part, 0);
        wait_for_copies();
        settle(part, 0);
    }
    for (int buffer = 0; left > 0; buffer ^= 1) {
        __syncthreads();  // the tile is there, and nobody reads the one before any more
        --left;
        Inner::next(z0, y0, x0, n, depth, height, width);
        #pragma unroll 1
        for (int part = 0; part < DW_PARTS; ++part) {
            if (left > 0) fetch(part, buffer ^ 1);
            int plane = part / 2, x_ = part % 2 * 8;  // columns of 8 voxels of one plane
            float2 near[DW_Y + 2][3];
            #pragma unroll
            for (int r = 0; r < DW_Y + 2; ++r) {
                #pragma unroll
                for (int m = 0; m < 3; ++m) {
                    const float* v = x_from + 4 * (buffer * SIZE + (plane * (DW_Y + 2) + r) *
                                                                       (DW_X + 2) + x_ + m);
                    near[r][m] = make_float2(v[0], v[4 * 4]);  // voxels t and t + 4
                }
                if (r < 2) continue;
                #pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float* v = dy_from + 4 * (buffer * SIZE + 2 * half * Inner::SIZE +
                                                    (plane * DW_Y + r - 2) * DW_X + x_);
                    const float* v8 = v + 4 * Inner::SIZE;  // 8 channels on
                    float4 gradient = make_float4(v[0], v8[0], v[4 * 4], v8[4 * 4]);
                    #pragma unroll
                    for (int tap = 0; tap < 9; ++tap)
                        mma(sum[tap][half], gradient, near[r - 2 + tap / 3][tap % 3]);
                }
            }
            wait_for_copies();
            if (left > 0) settle(part, buffer ^ 1);
        }
    }

    parts += blockIdx.x * (long long)c_out * (c_in * 27 + 1);
    #pragma unroll
    for (int tap = 0; tap < 9; ++tap)
        #pragma unroll
        for (int q = 0; q < 8; ++q) {  // this lane's D: channels 2t, 2t + 1 in rows g, g + 8
            int o = o0 + q / 2 * 8 + g, c = c0 + group * CHANNELS + 2 * t + q % 2;
            long long weight = ((long long)o * c_in + c) * 27 + i * 9 + tap;
            if (o < c_out && c < c_in) parts[weight] = sum[tap][q / 4][q % 4];
        }

    if (blockIdx.y > 0) return;
    __syncthreads();  // nobody reads a tile any more
    shared_memory[threadIdx.x] = bias;
    __syncthreads();
    sum_bias<FillDy::LANES>((const float*)shared_memory, parts + (long long)c_out * c_in * 27 + o0,
                            c_out - o0);
}

#define FIRST_THREADS 256
#define FIRST_BYTES 37248  // of dynamic shared memory: two tiles of dy and of x
#define FIRST_STAGE 8192   // more of it where factors are pairs

// computes  the same where C_in = 1, the first layer: the 27 taps take the place of the channels
// threads   a block of 8 warps owns 32 output channels and all taps; each warp multiplies two of a
//           tile's 16 columns of 8 voxels: D for 4 x 8 taps (27, and 5 that are not written) by
//           2 x 16 output channels, 32 sums per lane in registers. At the end the warps' sums are
//           added in shared memory. Grid: S, 1, groups of 32 output channels.
// overlap   as above, in two parts
// memory    per tile of 16 x 4 x 2 voxels a block reads 18 x 6 x 4 elements of x and 128 of each of
//           its output channels: it is bound by reading dy once. Writes each of its weights once.
//           FIRST_BYTES of shared memory (FIRST_STAGE more for pairs), at most 85 registers: three
//           blocks fit on an SM.
// work      2 N D H W FLOP per weight
// no race   as above; the sums of the warps are added in their order
extern "C" __global__ void __launch_bounds__(FIRST_THREADS, 3)
conv3d_tensor_backward_first(const float* __restrict__ dy, const float* __restrict__ x,
                             float* __restrict__ parts, int scans, int c_out, int depth, int height,
                             int width)
{
    typedef Tile<DW_X, DW_Y, DW_Z> Inner;
    typedef Inner::Fill<DW_MAPS / CHANNELS, 2, FIRST_THREADS, 1, DW_Z> FillDy;
    constexpr int SIZE = DW_MAPS / CHANNELS * Inner::SIZE;
    constexpr int X = DW_X + 2, Y = DW_Y + 2, HALO = X * Y * (DW_Z + 2);
    static_assert(16 * 2 * SIZE + 4 * 2 * HALO == FIRST_BYTES, "");
    static_assert(16 * FillDy::STAGE == FIRST_STAGE * (PAIR - 1), "");
    static_assert(HALO / 2 <= FIRST_THREADS, "a thread loads at most one element of x per part");
    extern __shared__ float4 shared_memory[];  // dy, dy, x, x, stage
    float* x_tile = (float*)(shared_memory + 2 * SIZE);
    float4* stage = shared_memory + FIRST_BYTES / 16;
    int tiles_x = (width + DW_X - 1) / DW_X, tiles_y = (height + DW_Y - 1) / DW_Y;
    int tiles_z = (depth + DW_Z * PAIR - 1) / (DW_Z * PAIR);
    long long voxels = (long long)depth * height * width;
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int o0 = blockIdx.z * DW_MAPS, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp = threadIdx.x / 32;
    // what this lane holds of A and of B: channel g of voxel t; of x voxel t at tap g, g + 8, ...
    const float* dy_from = (const float*)(shared_memory + g / 4 * Inner::PITCH + t) + g % 4;
    int offset[4];
    #pragma unroll
    for (int q = 0; q < 4; ++q) {
        int tap = min(q * 8 + g, 26);
        offset[q] = (tap / 9 * Y + tap / 3 % 3) * X + tap % 3 + t;
    }

    float sum[4][2][4] = {};
    float4 bias = make_float4(0, 0, 0, 0);  // of the 4 output channels that this thread copies
    long long tile = tiles * blockIdx.x / gridDim.x;
    int left = (int)(tiles * (blockIdx.x + 1) / gridDim.x - tile);  // tiles, this one among them
    int z0 = (int)(tile % tiles_z) * DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * DW_X;
    int n = (int)(tile / tiles_z / tiles_y / tiles_x);

    float2 loaded = make_float2(0, 0);  // x is little: it goes through registers
    auto fetch = [&](int part, int buffer) {
        FillDy::fetch(part, shared_memory + buffer * SIZE, stage,
                      dy + ((long long)n * c_out + o0) * voxels, c_out - o0, x0, y0, z0, depth,
                      height, width);
        int e = part * (HALO / 2) + threadIdx.x, xx = x0 - 1 + e % X, yy = y0 - 1 + e / X % Y;
        int zz = z0 - 1 + e / X / Y, place = (zz * height + yy) * width + xx;
        bool inside = threadIdx.x < HALO / 2 && xx >= 0 && xx < width && yy >= 0 && yy < height;
        loaded.x = inside && zz >= 0 && zz < depth ? x[n * voxels + place] : 0.0f;
        if (PAIR == 2) {
            zz += DW_Z, place += DW_Z * height * width;
            loaded.y = inside && zz >= 0 && zz < depth ? x[n * voxels + place] : 0.0f;
        }
    };
    auto settle = [&](int part, int buffer) {
        float4 more = FillDy::settle(part, shared_memory + buffer * SIZE, stage);
        bias.x += more.x, bias.y += more.y, bias.z += more.z, bias.w += more.w;
        if (threadIdx.x < HALO / 2)
            x_tile[buffer * HALO + part * (HALO / 2) + threadIdx.x] = to_factor(loaded.x, loaded.y);
    };

    for (int part = 0; part < 2 && left > 0; ++part) {
        fetch(part, 0);
        wait_for_copies();
        settle(part, 0);
    }
    for (int buffer = 0; left > 0; buffer ^= 1) {
        __syncthreads();  // the tile is there, and nobody reads the one before any more
        --left;
        Inner::next(z0, y0, x0, n, depth, height, width);
        #pragma unroll 1
        for (int part = 0; part < 2; ++part) {
            if (left > 0) fetch(part, buffer ^ 1);
            int column = warp * 2 + part, plane = column / 8, row = column / 2 % 4;
            int x_ = column % 2 * 8;
            float2 near[4];
            #pragma unroll
            for (int q = 0; q < 4; ++q) {
                const float* v = x_tile + buffer * HALO + (plane * Y + row) * X + x_ + offset[q];
                near[q] = make_float2(v[0], v[4]);  // voxels t and t + 4
            }
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float* v = dy_from + 4 * (buffer * SIZE + 2 * half * Inner::SIZE +
                                                (plane * DW_Y + row) * DW_X + x_);
                const float* v8 = v + 4 * Inner::SIZE;  // 8 channels on
                float4 gradient = make_float4(v[0], v8[0], v[4 * 4], v8[4 * 4]);
                #pragma unroll
                for (int q = 0; q < 4; ++q)
                    mma(sum[q][half], gradient, near[q]);
            }
            wait_for_copies();
            if (left > 0) settle(part, buffer ^ 1);
        }
    }

    __syncthreads();  // nobody reads a tile any more
    float* sums = (float*)shared_memory;  // warp, output channel, tap
    #pragma unroll
    for (int q = 0; q < 4; ++q)
        #pragma unroll
        for (int e = 0; e < 8; ++e)  // this lane's D: taps 2t, 2t + 1 in rows g, g + 8
            sums[(warp * DW_MAPS + e / 2 * 8 + g) * 32 + q * 8 + 2 * t + e % 2] =
                sum[q][e / 4][e % 4];
    __syncthreads();
    parts += blockIdx.x * (long long)c_out * 28;
    for (int e = threadIdx.x; e < DW_MAPS * 27; e += FIRST_THREADS) {
        int o = e / 27, tap = e % 27;
        float total = 0;
        for (int w = 0; w < FIRST_THREADS / 32; ++w)
            total += sums[(w * DW_MAPS + o) * 32 + tap];
        if (o0 + o < c_out) parts[(o0 + o) * 27 + tap] = total;
    }
    __syncthreads();  // nobody reads the sums any more
    shared_memory[threadIdx.x] = bias;
    __syncthreads();
    sum_bias<FillDy::LANES>((const float*)shared_memory, parts + (long long)c_out * 27 + o0,
                            c_out - o0);
}

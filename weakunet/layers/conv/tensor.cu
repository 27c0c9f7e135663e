// The 3x3x3 convolution on tensor cores: the sums of naive.cu with factors rounded to TF32, as
// products of matrices. Forward and backward to the input share a kernel; the gradient of the
// weights has its own, below. tensor_core.cuh says what a tensor core does.
//
// For each tap, Y (output channels, voxels) += W (output, input channels) X (input channels, voxels
// moved by the tap). One mma takes 16 output channels, 8 input channels and a row of 8 voxels.
//
// x, y, their gradients and the arranged weights are packed: tf32 or bfloat16 (packed.py). A volume
// (one channel of one scan) has fewer than 2^31 voxels; offsets beyond it are 64-bit.
#include "tensor_core.cuh"

#define MAPS 32       // output channels of a block: two times the 16 rows of A
#define FRAGMENTS 64  // the weights of a tap in MAPS output and 8 input channels, in float4

// computes  the weights in the order in which conv3d_tensor reads them, rounded:
//           arranged[group of 32 output channels, packed group of input channels, tap, which 16 of
//           the 32, lane] is what that lane holds of A (16 output channels x 8 words; lane's columns
//           t, t + 4 are words 2t, 2t + 1 of a voxel); 0 where there is no channel. backward != 0:
//           the weights that take dy to dx, flipped along z, y and x, C_in and C_out exchanged;
//           c_in and c_out are the channels of the convolution that uses them.
// threads   thread t owns word t of arranged, t < total
// memory    reads 1 element, writes 1 element per output
// work      1 rounding per output
// no race   every arranged[t] has one owner, and nothing that is read is written
extern "C" __global__ void conv3d_tensor_weights(const float* __restrict__ w,
                                                 stored* __restrict__ arranged, int c_in, int c_out,
                                                 int backward, long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int part = (int)(t % 4), lane = (int)(t / 4 % 32), half = (int)(t / 128 % 2);
    int tap = (int)(t / 256 % 27), groups = (c_in + INNER - 1) / INNER;
    int c = (int)(t / 256 / 27 % groups) * INNER + (lane % 4 * 2 + part / 2) * PAIR;
    int o = (int)(t / 256 / 27 / groups) * MAPS + half * 16 + channel_of_row(part % 2 * 8 + lane / 4);
    float value[PAIR];
    for (int p = 0; p < PAIR; ++p, ++c) {
        long long place = backward ? ((long long)c * c_out + o) * 27 + 26 - tap
                                   : ((long long)o * c_in + c) * 27 + tap;
        value[p] = o < c_out && c < c_in ? w[place] : 0.0f;
    }
    ((float*)arranged)[t] = to_word(value[0], value[PAIR - 1]);
}

#define TILE_X 16    // a block's tile of the output has TILE_X x TILE_Y x TILE_Z voxels
#define TILE_Y 8     // a warp owns 8 x TILE_Y of one plane
#define TILE_Z 4
#define THREADS 256  // TILE_X / 8 x TILE_Z warps
#define CONV_BYTES 87936  // of dynamic shared memory: two tiles and the weights of 9 taps, twice

// computes  y as at the top of naive.cu, for k = 3; without b where bias = 0. With dy for x,
//           flipped weights and no bias this is dx. What comes next is computed on the way out:
//           relu != 0: max(y, 0); masked = 1: 0 where mask, packed like y, is not positive (a
//           ReLU's backward: its output); masked = 2: 0 where roi, one plain map per scan, is not.
//           Then y is rounded. Of a packed group's channels those that are not there are 0.
// threads   a block of 8 warps owns a tile of 16 x 8 x 4 voxels (x, y, z) in 32 output channels, a
//           warp 8 x 8 voxels of one plane: D for 2 x 16 channels by 8 rows of voxels, 64 sums per
//           lane in registers. Grid: tiles, groups of 32 output channels, scans.
// overlap   a packed group of 8 input channels (16 in bfloat16) is multiplied in three steps, one per
//           plane of taps. Meanwhile a third of the next group's tile and the next step's weights
//           are copied to a second buffer.
// memory    per block and input channel the halo of 18 x 10 x 6 elements is read once, for 512
//           voxels: 2.1 elements of x per voxel and input channel, in whole sectors, plus 27 x 32
//           weights. Writes 1 per output, in whole sectors.
//           From shared memory a warp reads 10 float2 of x, which serve 3 taps along y, and 6
//           float4 of weights for 48 mma: 44 x 128 bytes, no bank conflicts.
//           CONV_BYTES of shared memory and at most 128 registers: two blocks fit on an SM of an
//           H100, one on an A100's or a GeForce's.
// work      2 x 27 C_in FLOP per output
// no race   every output has one owner. One __syncthreads() per step stands between the copies and
//           whoever reads them, and between the last reader of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv3d_tensor(const stored* __restrict__ x, const stored* __restrict__ arranged,
              const float* __restrict__ b, const stored* __restrict__ mask,
              const float* __restrict__ roi, stored* __restrict__ y, int c_in, int c_out, int depth,
              int height, int width, int bias, int relu, int masked)
{
    typedef Tile<TILE_X + 2, TILE_Y + 2, TILE_Z + 2> Halo;
    typedef Halo::Fill<1, 3, THREADS> Fill;
    static_assert(16 * 2 * (Halo::SIZE + 9 * FRAGMENTS) == CONV_BYTES, "");
    extern __shared__ float4 shared_memory[];
    float4* w_tile = shared_memory + 2 * Halo::SIZE;
    int tiles_x = (width + TILE_X - 1) / TILE_X, tiles_y = (height + TILE_Y - 1) / TILE_Y;
    int x0 = blockIdx.x % tiles_x * TILE_X, y0 = blockIdx.x / tiles_x % tiles_y * TILE_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * TILE_Z;
    long long voxels = (long long)depth * height * width;
    int groups = (c_in + INNER - 1) / INNER, steps = groups * 3;
    const float4* scan = (const float4*)x + blockIdx.z * groups * voxels * 2;  // this block's
    const float4* weights = (const float4*)arranged + (long long)blockIdx.y * steps * 9 * FRAGMENTS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_x = threadIdx.x / 32 % 2 * 8, warp_z = threadIdx.x / 64;
    // words 2t, 2t + 1 of the voxel that this lane holds of B: of row 0 at tap (0, 0, 0)
    const float2* from = (const float2*)(shared_memory + t / 2 * Halo::PITCH + warp_x + g +
                                         warp_z * (TILE_X + 2) * (TILE_Y + 2)) + t % 2;

    // Steps are numbered through: step s multiplies group s / 3 by the taps of plane s % 3, and
    // fetch(s) starts to copy part s % 3 of that group's tile.
    auto fetch = [&](int s) {
        Fill::fetch(s % 3, shared_memory + s / 3 % 2 * Halo::SIZE, scan + s / 3 * voxels * 2, 1,
                    x0 - 1, y0 - 1, z0 - 1, depth, height, width);
    };
    auto fetch_weights = [&](int s) {
        for (int e = threadIdx.x; e < 9 * FRAGMENTS; e += THREADS)
            copy_async(w_tile + s % 2 * 9 * FRAGMENTS + e, weights + s * 9 * FRAGMENTS + e);
    };

    fetch_weights(0);
    for (int s = 0; s < 3; ++s)
        fetch(s);
    float sum[2][TILE_Y][4] = {};
    #pragma unroll 1
    for (int s = 0; s < steps; ++s) {
        wait_for_copies();
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
    }

    int left = width - x0 - warp_x - 2 * t;  // this lane's D: voxels 2t, 2t + 1 of each row
    if (left <= 0 || z0 + warp_z >= depth) return;
    int groups_out = (c_out + INNER - 1) / INNER;
    roi += blockIdx.z * voxels;
    #pragma unroll
    for (int q = 0; q < 4 / PAIR; ++q) {  // packed groups, of which this lane has word g
        int group = blockIdx.y * (4 / PAIR) + q, o = group * INNER + g * PAIR;
        if (group >= groups_out) return;
        float shift[PAIR];
        #pragma unroll
        for (int p = 0; p < PAIR; ++p)
            shift[p] = bias && o + p < c_out ? b[o + p] : 0.0f;
        int voxel = ((z0 + warp_z) * height + y0) * width + width - left;
        long long word = ((blockIdx.z * groups_out + group) * voxels + voxel) * 8 + g;
        #pragma unroll
        for (int r = 0; r < TILE_Y; ++r, voxel += width, word += 8 * width)
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                if (y0 + r >= height || e >= left) continue;
                float gate = masked == 1 ? ((const float*)mask)[word + 8 * e] : 0.0f, value[PAIR];
                bool keep = masked != 2 || roi[voxel + e] > 0;
                #pragma unroll
                for (int p = 0; p < PAIR; ++p) {
                    value[p] = sum[q * PAIR / 2][r][(q * PAIR % 2 + p) * 2 + e] + shift[p];
                    if (relu && value[p] < 0) value[p] = 0;
                    if (!keep || (masked == 1 && !(from_word(gate, p) > 0))) value[p] = 0;
                }
                ((float*)y)[word + 8 * e] = to_word(value[0], value[PAIR - 1]);
            }
    }
}

// ---- the gradients of the weights and the bias -------------------------------------------------
//
// For each tap, dW (output, input channels) += dY (output channels, voxels) X (voxels moved by the
// tap, input channels). One mma takes 16 output channels, 8 voxels along x and 8 input channels.
//
// The sum over all voxels of all scans is split across many blocks; each writes its part, and
// conv3d_sum_parts (parts.cu) adds the parts in their order. No atomics, hence the same bits every
// time.

#define DW_X 16  // a tile has DW_X x DW_Y x DW_Z voxels
#define DW_Y 4
#define DW_Z 2
#define DW_MAPS 32      // output channels of a block: two times the 16 rows of A
#define DW_GROUPS 2     // groups of 8 input channels of a block
#define DW_THREADS 192  // 3 x DW_GROUPS warps
#define DW_PARTS 4      // a tile is multiplied, and the next one filled, in DW_Z x DW_X / 8 parts
#define DW_BYTES 90368  // of dynamic shared memory: two tiles of dy and of x

// computes  the part of dw and db that some of the tiles contribute: parts[s], (C_out, C_in, 3, 3,
//           3) and then (C_out), is the sum over the s-th of S runs of tiles
// threads   a block of 6 warps owns 32 output and 16 input channels, a warp 8 of the input channels
//           and the 9 taps (i, 0..2, 0..2) of one i: D for 9 taps by 2 x 16 output channels, 72
//           sums per lane in registers. Grid: S, groups of 16 input, groups of 32 output channels;
//           of the first group of input channels one warp sums db as well: dy times a matrix of
//           ones.
// overlap   a tile is multiplied in four parts, 8 voxels along x of one plane each; meanwhile a
//           quarter of the next tile is copied to a second buffer. In bfloat16 pairs of channels
//           become pairs of voxels, once a tile is there.
// memory    per tile of 16 x 4 x 2 voxels (x, y, z; in bfloat16 twice as deep) a block reads
//           18 x 6 x 4 elements of each of its input and 128 of each of its output channels, in
//           whole sectors. Writes each of its weights once.
//           From shared memory a warp reads, for the 9 taps of 8 voxels, 8 floats of dy and at most
//           18 of x (6 of them new in a row below another) for 18 mma, no bank conflicts.
//           DW_BYTES of shared memory and at most 168 registers: two blocks fit on an SM of an
//           H100.
// work      2 N D H W FLOP per weight
// no race   every element of parts has one owner, who adds in a fixed order. One __syncthreads()
//           per tile stands between the copies and whoever reads them, and between the last reader
//           of a buffer and the next copy to it.
extern "C" __global__ void __launch_bounds__(DW_THREADS, 2)
conv3d_tensor_backward_weight(const stored* __restrict__ dy, const stored* __restrict__ x,
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
    extern __shared__ float4 shared_memory[];  // dy, x, dy, x
    int tiles_x = (width + DW_X - 1) / DW_X, tiles_y = (height + DW_Y - 1) / DW_Y;
    int tiles_z = (depth + DW_Z * PAIR - 1) / (DW_Z * PAIR);
    long long tiles = (long long)tiles_x * tiles_y * tiles_z * scans;
    int c0 = blockIdx.y * DW_GROUPS * CHANNELS, o0 = blockIdx.z * DW_MAPS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int i = threadIdx.x / 32 % 3, group = threadIdx.x / 96;  // this warp's taps and input channels
    // what this lane holds of A and of B: channel g of voxel t; of x at tap (i, 0, 0)
    const float* dy_from = (const float*)(shared_memory + g / 4 * Inner::PITCH + t) + g % 4;
    const float* x_from = (const float*)(shared_memory + DY_SIZE + group * Halo::SIZE +
                                         g / 4 * Halo::PITCH + t +
                                         i * (DW_X + 2) * (DW_Y + 2)) + g % 4;

    float sum[9][2][4] = {}, bias[2][4] = {};
    bool sums_bias = blockIdx.y == 0 && threadIdx.x < 32;
    float2 ones = make_float2(to_word(1, 1), to_word(1, 1));
    long long tile = tiles * blockIdx.x / gridDim.x;
    int left = (int)(tiles * (blockIdx.x + 1) / gridDim.x - tile);  // tiles, this one among them
    int z0 = (int)(tile % tiles_z) * DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * DW_X;
    int n = (int)(tile / tiles_z / tiles_y / tiles_x);

    auto fetch = [&](int part, int buffer) {  // of the tile at x0, y0, z0 of scan n
        float4* to = shared_memory + buffer * SIZE;
        fetch_group<FillDy>(part, to, dy, n, c_out, o0, x0, y0, z0, depth, height, width);
        fetch_group<FillX>(part, to + DY_SIZE, x, n, c_in, c0, x0 - 1, y0 - 1, z0 - 1, depth,
                           height, width);
    };

    for (int part = 0; part < DW_PARTS && left > 0; ++part)
        fetch(part, 0);
    for (int buffer = 0; left > 0; buffer ^= 1) {
        wait_for_copies();
        FillDy::pair_voxels(shared_memory + buffer * SIZE);
        FillX::pair_voxels(shared_memory + buffer * SIZE + DY_SIZE);
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
                    if (sums_bias) mma(bias[half], gradient, ones);
                }
            }
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

    #pragma unroll
    for (int q = 0; q < 4; ++q) {  // all columns of D are the same
        int o = o0 + q * 8 + g;
        if (sums_bias && t == 0 && o < c_out)
            parts[(long long)c_out * c_in * 27 + o] = bias[q / 2][q % 2 * 2];
    }
}

#define FIRST_THREADS 256
#define FIRST_BYTES 37760  // of dynamic shared memory: two tiles of dy and of x

// computes  the same where C_in = 1, the first layer: the 27 taps take the place of the channels,
//           and a 28th, whose x is 1 everywhere, sums db
// threads   a block of 8 warps owns 32 output channels and all taps; each warp multiplies two of a
//           tile's 16 columns of 8 voxels: D for 4 x 8 taps (28, and 4 that are not written) by
//           2 x 16 output channels, 32 sums per lane in registers. At the end the warps' sums are
//           added in shared memory. Grid: S, 1, groups of 32 output channels.
// overlap   as above, in two parts
// memory    per tile of 16 x 4 x 2 voxels a block reads 18 x 6 x 4 sectors of x (one number of each)
//           and 128 elements of each of its output channels: it is bound by reading dy once. Writes
//           each of its weights once.
//           FIRST_BYTES of shared memory and at most 85 registers: three blocks fit on an SM.
// work      2 N D H W FLOP per weight
// no race   as above; the sums of the warps are added in their order
extern "C" __global__ void __launch_bounds__(FIRST_THREADS, 3)
conv3d_tensor_backward_first(const stored* __restrict__ dy, const stored* __restrict__ x,
                             float* __restrict__ parts, int scans, int c_out, int depth, int height,
                             int width)
{
    typedef Tile<DW_X, DW_Y, DW_Z> Inner;
    typedef Inner::Fill<DW_MAPS / CHANNELS, 2, FIRST_THREADS, 1, DW_Z> FillDy;
    constexpr int SIZE = DW_MAPS / CHANNELS * Inner::SIZE;
    constexpr int X = DW_X + 2, Y = DW_Y + 2, HALO = X * Y * (DW_Z + 2);
    static_assert(16 * 2 * SIZE + 4 * 2 * HALO == FIRST_BYTES, "");
    static_assert(HALO / 2 <= FIRST_THREADS, "a thread loads at most one element of x per part");
    extern __shared__ float4 shared_memory[];  // dy, dy, x, x
    float* x_tile = (float*)(shared_memory + 2 * SIZE);
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
    long long tile = tiles * blockIdx.x / gridDim.x;
    int left = (int)(tiles * (blockIdx.x + 1) / gridDim.x - tile);  // tiles, this one among them
    int z0 = (int)(tile % tiles_z) * DW_Z * PAIR, y0 = (int)(tile / tiles_z % tiles_y) * DW_Y;
    int x0 = (int)(tile / tiles_z / tiles_y % tiles_x) * DW_X;
    int n = (int)(tile / tiles_z / tiles_y / tiles_x);

    float2 loaded = make_float2(0, 0);  // x is little: it goes through registers
    auto fetch = [&](int part, int buffer) {
        fetch_group<FillDy>(part, shared_memory + buffer * SIZE, dy, n, c_out, o0, x0, y0, z0,
                            depth, height, width);
        int e = part * (HALO / 2) + threadIdx.x, xx = x0 - 1 + e % X, yy = y0 - 1 + e / X % Y;
        int zz = z0 - 1 + e / X / Y, place = (zz * height + yy) * width + xx;
        bool inside = threadIdx.x < HALO / 2 && xx >= 0 && xx < width && yy >= 0 && yy < height;
        const float* word = (const float*)x + (n * voxels + place) * 8;  // of channel 0
        loaded.x = inside && zz >= 0 && zz < depth ? *word : 0.0f;
        if (PAIR == 2) {
            zz += DW_Z, word += DW_Z * height * width * 8LL;
            loaded.y = inside && zz >= 0 && zz < depth ? *word : 0.0f;
        }
    };
    auto store = [&](int part, int buffer) {
        if (threadIdx.x < HALO / 2)
            x_tile[buffer * HALO + part * (HALO / 2) + threadIdx.x] =
                PAIR == 2 ? lower_halves(loaded.x, loaded.y) : loaded.x;
    };

    for (int part = 0; part < 2 && left > 0; ++part) {
        fetch(part, 0);
        store(part, 0);
    }
    for (int buffer = 0; left > 0; buffer ^= 1) {
        wait_for_copies();
        FillDy::pair_voxels(shared_memory + buffer * SIZE);
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
            if (g == 3) near[3] = make_float2(to_word(1, 1), to_word(1, 1));  // "tap" 27
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
            if (left > 0) store(part, buffer ^ 1);
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
    for (int e = threadIdx.x; e < DW_MAPS * 28; e += FIRST_THREADS) {
        int o = e / 28, tap = e % 28;
        float total = 0;
        for (int w = 0; w < FIRST_THREADS / 32; ++w)
            total += sums[(w * DW_MAPS + o) * 32 + tap];
        int place = tap < 27 ? (o0 + o) * 27 + tap : c_out * 27 + o0 + o;
        if (o0 + o < c_out) parts[place] = total;
    }
}

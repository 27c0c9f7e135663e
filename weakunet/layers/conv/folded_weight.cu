// The gradient of the weights that read an upsampled tensor, on tensor cores: that of the folded
// weights (folded.cu) first, then unfolded. tensor_core.cuh says what a tensor core does.
//
// The sum over all voxels of all scans is shared out over many blocks; each leaves its part, and
// upconv3d_tensor_unfold adds the parts in their order. No atomics, hence the same bits every time.
// depth, height, width are the coarse volume's; a fine volume has fewer than 2^31 voxels.
#include "tensor_core.cuh"

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
upconv3d_tensor_backward_weight(const float* __restrict__ dy, const float* __restrict__ x,
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
upconv3d_tensor_unfold(const float* __restrict__ parts, float* __restrict__ dw, int count,
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

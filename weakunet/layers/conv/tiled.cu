// 3D convolution on the GPU from tiles in shared memory: forward, backward to the input, and below
// the gradients of weights and bias; the same numbers as naive.cu, fast. real is float or double.
//
// Two ideas. A block of threads copies the input that its tile of the output needs to shared memory
// once, instead of reading it 27 times from global memory. And a thread keeps 64 sums in registers,
// 8 voxels by 8 output channels: it uses each number that it reads from shared memory for 8 or more
// multiply-adds, so that arithmetic, not memory, sets the pace.
//
// A volume (one channel of one scan) has fewer than 2^31 voxels; offsets beyond it are 64-bit.

#define TILE_X 16  // a tile of the output has TILE_X x TILE_Y x TILE_Z voxels
#define TILE_Y 8   // a thread owns the whole column along y ...
#define TILE_Z 4
#define MAPS 8    // ... in MAPS output channels: TILE_Y MAPS sums, which it keeps in registers
#define GROUPS 4  // at most so many groups of MAPS channels in a block
#define CHUNK 2   // input channels that are in shared memory at a time

// A row of w_tile holds one tap's weights for all channels of the block, and 4 elements more: so
// rows start in different banks, and still at multiples of 16 bytes.
#define W_PITCH 36  // MAPS GROUPS + 4

// What a tile of the output sees of one input channel: a halo of 2 more along each axis.
struct Halo {
    static constexpr int X = TILE_X + 2, Y = TILE_Y + 2, Z = TILE_Z + 2;
    // A warp reads 16 neighbours along x in two planes at a time: with planes an odd multiple of 16
    // elements apart, these lie in the 32 different banks.
    static constexpr int PLANE = X * Y + (48 - X * Y % 32) % 32;
    static constexpr int SIZE = PLANE * Z;
};

// What the tiled kernels below share. BACKWARD walks through the weights in the other order:
// dx is the convolution of dy with weights flipped along z, y, x and with C_in, C_out exchanged.
// Here c_in and c_out are the channels of THIS convolution's input x and output y. What comes next
// is computed on the way out: relu != 0: max(y, 0); masked: 0 where mask is not positive. With
// masked = 1 it has y's shape (a ReLU's backward), with 2 it is one map per scan (the ROI).
template <bool BACKWARD>
static __device__ __forceinline__ void convolve_tile(const real* __restrict__ x,
                                                     const real* __restrict__ w,
                                                     const real* __restrict__ b,
                                                     const real* __restrict__ mask,
                                                     real* __restrict__ y, int c_in, int c_out,
                                                     int depth, int height, int width, int relu,
                                                     int masked, real* x_tile, real* w_tile)
{
    const int K = 3, TAPS = 27;
    typedef Halo H;
    int tiles_x = (width + TILE_X - 1) / TILE_X, tiles_y = (height + TILE_Y - 1) / TILE_Y;
    int x0 = blockIdx.x % tiles_x * TILE_X, y0 = blockIdx.x / tiles_x % tiles_y * TILE_Y;
    int z0 = blockIdx.x / tiles_x / tiles_y * TILE_Z;
    int maps = blockDim.z * MAPS, o0 = blockIdx.y * maps;  // this block's output channels
    long long voxels = (long long)depth * height * width;
    x += blockIdx.z * c_in * voxels;  // this block's scan
    y += blockIdx.z * c_out * voxels;
    mask += blockIdx.z * (masked == 2 ? 1 : c_out) * voxels;
    int thread = threadIdx.x + TILE_X * (threadIdx.y + TILE_Z * threadIdx.z);
    int threads = TILE_X * TILE_Z * blockDim.z;

    real sum[MAPS][TILE_Y] = {};
    for (int c0 = 0; c0 < c_in; c0 += CHUNK) {
        int chunk = min(CHUNK, c_in - c0);
        __syncthreads();  // nobody reads the last chunk any more
        #pragma unroll 2
        for (int e = thread; e < chunk * H::Z * H::Y * H::X; e += threads) {
            int c = e / (H::X * H::Y * H::Z), i = e / (H::X * H::Y) % H::Z;
            int j = e / H::X % H::Y, m = e % H::X;
            int xx = x0 + m - 1, yy = y0 + j - 1, zz = z0 + i - 1;
            bool inside = xx >= 0 && xx < width && yy >= 0 && yy < height && zz >= 0 && zz < depth;
            real value = inside ? x[(c0 + c) * voxels + (zz * height + yy) * width + xx] : (real)0;
            x_tile[c * H::SIZE + i * H::PLANE + j * H::X + m] = value;
        }
        #pragma unroll 2
        for (int e = thread; e < maps * CHUNK * TAPS; e += threads) {
            int tap = e % TAPS, c = e / TAPS % CHUNK, o = e / TAPS / CHUNK;
            long long place = BACKWARD
                                  ? ((c0 + c) * (long long)c_out + o0 + o) * TAPS + TAPS - 1 - tap
                                  : ((o0 + o) * (long long)c_in + c0 + c) * TAPS + tap;
            w_tile[(c * TAPS + tap) * W_PITCH + o] =
                o0 + o < c_out && c < chunk ? w[place] : (real)0;
        }
        __syncthreads();  // the chunk is there
        for (int c = 0; c < chunk; ++c)
            #pragma unroll 1
            for (int i = 0; i < K; ++i)
                #pragma unroll
                for (int m = 0; m < K; ++m) {
                    // one column of the halo serves the K taps along y: K MAPS TILE_Y multiply-adds
                    const real* from = x_tile + c * H::SIZE + (threadIdx.y + i) * H::PLANE +
                                       threadIdx.x + m;
                    real column[H::Y];
                    #pragma unroll
                    for (int j = 0; j < H::Y; ++j)
                        column[j] = from[j * H::X];
                    #pragma unroll
                    for (int j = 0; j < K; ++j) {
                        const real* weights = w_tile + threadIdx.z * MAPS +
                                              (c * TAPS + (i * K + j) * K + m) * W_PITCH;
                        #pragma unroll
                        for (int q = 0; q < MAPS; ++q)
                            #pragma unroll
                            for (int r = 0; r < TILE_Y; ++r)
                                sum[q][r] += weights[q] * column[r + j];
                    }
                }
    }

    int xx = x0 + threadIdx.x, zz = z0 + threadIdx.y;
    if (xx >= width || zz >= depth) return;
    #pragma unroll
    for (int q = 0; q < MAPS; ++q) {
        int o = o0 + threadIdx.z * MAPS + q;
        if (o >= c_out) return;
        real bias = BACKWARD ? (real)0 : b[o];
        real* column = y + o * voxels + (zz * height + y0) * width + xx;
        const real* gate = mask + (column - y) - (masked == 2 ? o * voxels : 0);
        #pragma unroll
        for (int r = 0; r < TILE_Y; ++r) {
            if (y0 + r >= height) continue;
            real value = sum[q][r] + bias;
            if (relu && value < 0) value = 0;
            if (masked && !(gate[r * width] > 0)) value = 0;
            column[r * width] = value;
        }
    }
}

// computes  y as at the top of naive.cu, for k = 3; relu, mask, masked as above
// threads   a block of 16 x 4 x G threads, G <= 4, owns a tile of 16 x 8 x 4 voxels (x, y, z) in
//           8 G output channels; thread (x, z, g) owns the column of 8 voxels at (x, z) in the 8
//           channels of group g. Grid: tiles, groups of 8 G channels, scans.
// memory    per block and input channel the halo of 18 x 10 x 6 elements is read once into shared
//           memory, for 512 voxels: 2.1 elements of x per voxel and input channel instead of 27,
//           plus the weights, 216 G elements. Writes 1 per output.
//           From shared memory a thread reads 10 elements of a column and 3 x 8 weights (the same
//           for the whole warp) for 3 x 64 multiply-adds.
// work      2 x 27 C_in FLOP per output
// no race   every output has one owner; __syncthreads() stands between filling shared memory and
//           reading it, and between reading it and filling it again
extern "C" __global__ void __launch_bounds__(256)
conv3d_forward_tiled(const real* __restrict__ x, const real* __restrict__ w,
                     const real* __restrict__ b, const real* __restrict__ mask,
                     real* __restrict__ y, int c_in, int c_out, int depth, int height, int width,
                     int relu, int masked)
{
    __shared__ real x_tile[CHUNK * Halo::SIZE];
    __shared__ __align__(16) real w_tile[CHUNK * 27 * W_PITCH];
    convolve_tile<false>(x, w, b, mask, y, c_in, c_out, depth, height, width, relu, masked, x_tile,
                         w_tile);
}

// computes  dx for k = 3, as conv3d_backward_input_naive; masked != 0: 0 where x, the output of a
//           ReLU, is not positive
// threads, memory, no race   as conv3d_forward_tiled, from dy to dx: c_in and c_out exchanged
// work      2 x 27 C_out FLOP per output
extern "C" __global__ void __launch_bounds__(256)
conv3d_backward_input_tiled(const real* __restrict__ dy, const real* __restrict__ w,
                            const real* __restrict__ x, real* __restrict__ dx, int c_in, int c_out,
                            int depth, int height, int width, int masked)
{
    __shared__ real dy_tile[CHUNK * Halo::SIZE];
    __shared__ __align__(16) real w_tile[CHUNK * 27 * W_PITCH];
    convolve_tile<true>(dy, w, x, x, dx, c_out, c_in, depth, height, width, 0, masked, dy_tile,
                        w_tile);
}

// ---- the gradients of the weights and the bias -------------------------------------------------
//
// Each is one long sum over all voxels of all scans. It is split across many blocks; each writes
// its part, and conv3d_sum_parts (parts.cu) adds them in their order. No atomics, hence the same
// bits every time.

#define DW_X 16  // a tile has DW_X x DW_Y voxels of one plane
#define DW_Y 4
#define DW_MAPS 16     // a thread owns DW_MAPS output channels and the k taps along x ...
#define DW_GROUPS 2    // (at most so many groups of them in a block)
#define DW_CHANNELS 8  // ... for one of at most DW_CHANNELS input channels and one (i, j)

// A row of dy_tile holds one voxel's gradients in all output channels of the block, and 4 elements
// more: so rows start in different banks, and still at multiples of 16 bytes.
#define DY_PITCH 36  // DW_MAPS DW_GROUPS + 4

// What a tile sees of one input channel. Neighbouring threads differ in j, then i, then the
// channel: with rows ROW (odd), planes k ROW and channels k^2 ROW elements apart (modulo 32), the
// threads of a warp read from different banks.
template <int K>
struct DwHalo {
    static constexpr int X = DW_X + K - 1, Y = DW_Y + K - 1;
    static constexpr int ROW = X | 1;
    static constexpr int PLANE = ROW * Y + (K * ROW - ROW * Y % 32 + 32) % 32;
    static constexpr int SIZE = K * PLANE;
};

template <int K>
static __device__ __forceinline__ void weight_gradient_tile(const real* __restrict__ dy,
                                                            const real* __restrict__ x,
                                                            real* __restrict__ parts, int scans,
                                                            int c_in, int c_out, int depth,
                                                            int height, int width, real* x_tile,
                                                            real* dy_tile)
{
    const int P = (K - 1) / 2;
    typedef DwHalo<K> H;
    int tiles_x = (width + DW_X - 1) / DW_X, tiles_y = (height + DW_Y - 1) / DW_Y;
    long long voxels = (long long)depth * height * width;
    long long tiles = (long long)tiles_x * tiles_y * depth * scans;
    int channels = blockDim.x / (K * K), c0 = blockIdx.y * channels;  // input channels of the block
    int maps = blockDim.y * DW_MAPS, o0 = blockIdx.z * maps;          // its output channels
    int thread = threadIdx.x + blockDim.x * threadIdx.y, threads = blockDim.x * blockDim.y;
    int c = threadIdx.x / (K * K), i = threadIdx.x / K % K, j = threadIdx.x % K;  // this thread's

    real sum[DW_MAPS][K] = {};  // of dw[o, c, i, j, m], for DW_MAPS output channels o and all m
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int x0 = (int)(tile % tiles_x) * DW_X, y0 = (int)(tile / tiles_x % tiles_y) * DW_Y;
        int z = (int)(tile / tiles_x / tiles_y % depth);
        long long n = tile / tiles_x / tiles_y / depth;
        __syncthreads();  // nobody reads the last tile any more
        for (int e = thread; e < channels * K * H::Y * H::X; e += threads) {
            int channel = e / (H::X * H::Y * K), a = e / (H::X * H::Y) % K;
            int row = e / H::X % H::Y, m = e % H::X;
            int xx = x0 + m - P, yy = y0 + row - P, zz = z + a - P;
            bool inside = xx >= 0 && xx < width && yy >= 0 && yy < height && zz >= 0 &&
                          zz < depth && c0 + channel < c_in;
            x_tile[channel * H::SIZE + a * H::PLANE + row * H::ROW + m] =
                inside ? x[(n * c_in + c0 + channel) * voxels + (zz * height + yy) * width + xx]
                       : (real)0;
        }
        for (int e = thread; e < maps * DW_Y * DW_X; e += threads) {
            int m = e % DW_X, row = e / DW_X % DW_Y, o = e / DW_X / DW_Y;
            int xx = x0 + m, yy = y0 + row;
            bool inside = xx < width && yy < height && o0 + o < c_out;
            real value = inside ? dy[(n * c_out + o0 + o) * voxels + (z * height + yy) * width + xx]
                                : (real)0;
            dy_tile[(row * DW_X + m) * DY_PITCH + o] = value;
        }
        __syncthreads();  // the tile is there
        #pragma unroll 1
        for (int row = 0; row < DW_Y; ++row) {
            const real* from = x_tile + c * H::SIZE + i * H::PLANE + (row + j) * H::ROW;
            const real* gradient = dy_tile + row * DW_X * DY_PITCH + threadIdx.y * DW_MAPS;
            #pragma unroll
            for (int v = 0; v < DW_X; ++v)
                #pragma unroll
                for (int q = 0; q < DW_MAPS; ++q)
                    #pragma unroll
                    for (int m = 0; m < K; ++m)
                        sum[q][m] += gradient[v * DY_PITCH + q] * from[v + m];
        }
    }

    #pragma unroll
    for (int q = 0; q < DW_MAPS; ++q) {
        int o = o0 + threadIdx.y * DW_MAPS + q;
        long long first = (((long long)blockIdx.x * c_out + o) * c_in + c0 + c) * (K * K * K);
        #pragma unroll
        for (int m = 0; m < K; ++m)
            if (o < c_out && c0 + c < c_in)
                parts[first + (i * K + j) * K + m] = sum[q][m];
    }
}

// computes  the part of dw that some of the tiles contribute, for k = 3: parts[s] (C_out, C_in, 3,
//           3, 3) is the sum over the tiles s, s + S, s + 2S, ...; conv3d_sum_parts adds up the S
//           parts
// threads   a block of 9 C x G threads, C <= 8, G <= 2, owns C input and 16 G output channels;
//           thread (c, i, j), g owns the taps (i, j, 0..2) of channel c for the 16 output channels
//           of group g: 48 sums in registers. Grid: S, groups of input, groups of output channels.
// memory    per tile of 16 x 4 voxels, 18 x 6 x 3 elements of each input and 64 of each output
//           channel are read once into shared memory. From there a thread reads 16 of dy (as four
//           16-byte words, the same for the threads of a group) and 1 of x for 48 multiply-adds.
//           Writes each of its weights once.
// work      2 N D H W FLOP per weight
// no race   every element of parts has one owner, who adds in a fixed order; __syncthreads() stands
//           between filling shared memory and reading it, and between reading and filling again
extern "C" __global__ void __launch_bounds__(144)
conv3d_backward_weight_tiled_k3(const real* __restrict__ dy, const real* __restrict__ x,
                                real* __restrict__ parts, int scans, int c_in, int c_out,
                                int depth, int height, int width)
{
    __shared__ real x_tile[DW_CHANNELS * DwHalo<3>::SIZE];
    __shared__ __align__(16) real dy_tile[DW_X * DW_Y * DY_PITCH];
    weight_gradient_tile<3>(dy, x, parts, scans, c_in, c_out, depth, height, width, x_tile,
                            dy_tile);
}

// computes  the same for k = 1
// threads   C x G threads per block, each owns 16 sums
// memory, work, no race   as for k = 3, without the halo
extern "C" __global__ void __launch_bounds__(144)
conv3d_backward_weight_tiled_k1(const real* __restrict__ dy, const real* __restrict__ x,
                                real* __restrict__ parts, int scans, int c_in, int c_out,
                                int depth, int height, int width)
{
    __shared__ real x_tile[DW_CHANNELS * DwHalo<1>::SIZE];
    __shared__ __align__(16) real dy_tile[DW_X * DW_Y * DY_PITCH];
    weight_gradient_tile<1>(dy, x, parts, scans, c_in, c_out, depth, height, width, x_tile,
                            dy_tile);
}

#define THREADS 256

// computes  parts[n P + p, o] = the sum of dy[n, o] over part p of the volume; conv3d_sum_parts
//           adds up the N P parts
// threads   block (p, o, n) owns one part: voxels THREADS p + t + i THREADS P of thread t
// memory    reads each dy once, writes 1 element per block; the threads' sums are joined in shared
//           memory, in a tree
// work      1 addition per element of dy
// no race   in each round of the tree a thread writes only its own place, and reads places that
//           nobody writes in that round; __syncthreads() separates the rounds
extern "C" __global__ void __launch_bounds__(THREADS)
conv3d_backward_bias_tiled(const real* __restrict__ dy, real* __restrict__ parts, long long voxels)
{
    __shared__ real shared_sum[THREADS];
    int o = blockIdx.y, c_out = gridDim.y, t = threadIdx.x;
    const real* map = dy + ((long long)blockIdx.z * c_out + o) * voxels;
    real sum = 0;
    for (long long v = (long long)blockIdx.x * THREADS + t; v < voxels;
         v += (long long)gridDim.x * THREADS)
        sum += map[v];
    shared_sum[t] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half)
            shared_sum[t] += shared_sum[t + half];
        __syncthreads();
    }
    if (t == 0)
        parts[((long long)blockIdx.z * gridDim.x + blockIdx.x) * c_out + o] = shared_sum[0];
}

// Tensor cores: what they multiply, and tiles in shared memory that feed them without bank
// conflicts. Included by tensor.cu and folded.cu. stored is tf32 or bfloat16, see packed.cuh.
#include "packed.cuh"
#ifndef CHANNELS  // not included yet

#define MIN_SM 80   // the oldest architecture that has them for TF32 and bfloat16: sm_80, Ampere
#define CHANNELS 8  // of a tile in shared memory

// A tensor core multiplies small matrices: D (16 x 8) += A (16 x 8) B (8 x 8), 1024 multiply-adds
// by one instruction of a whole warp. The factors are TF32, floats rounded to 10 bits of mantissa
// (a relative error of at most 2^-11); products are exact, sums are float32.
//
// The warp holds the matrices in its registers. Lane l, with g = l / 4 and t = l % 4, holds
//     of A  rows g, g + 8, g, g + 8 of columns t, t, t + 4, t + 4     (a.x, a.y, a.z, a.w)
//     of B  rows t and t + 4 of column g                              (b.x, b.y)
//     of D  columns 2t and 2t + 1 of row g, then of row g + 8         (d[0] ... d[3])
// The order of a sum is free, so it does not matter which 8 things the columns of A and the rows of
// B stand for, as long as both say the same.
//
// In bfloat16 each of these registers, and so each word (32 bits) of a tile and of the weights, is a
// PAIR of factors side by side: A is 16 x 16, B 16 x 8, and an mma adds up twice as many products in
// the same time. The loops over a tile do not know what its words hold. A pair is any two things
// that the sum runs over: neighbouring channels in a convolution, as packed arrays have them; in
// the weights' gradient, where the sum runs over voxels, a voxel and the one some planes on (of x
// and dy alike, so that every tap takes both by the same shift).
#define PAIR (4 / (int)sizeof(stored))

// Rows g and g + 8 of D are in one lane. In bfloat16 it writes them as a pair, so they must be
// neighbouring channels: which of 16 output channels row r of A stands for.
static __device__ __forceinline__ int channel_of_row(int r)
{
    return PAIR == 2 ? r % 8 * 2 + r / 8 : r;
}

// One or two factors in a word.
static __device__ __forceinline__ float to_word(float x, float y)
{
    return PAIR == 2 ? __uint_as_float(pair_of_bfloat16(x, y)) : round_to_tf32(x);
}

// The first (p = 0) or the second of the factors in a word.
static __device__ __forceinline__ float from_word(float word, int p)
{
    unsigned bits = __float_as_uint(word);
    return PAIR == 2 ? __uint_as_float(p ? bits & 0xffff0000u : bits << 16) : word;
}

// The lower, and the upper, halves of two words in one.
static __device__ __forceinline__ float lower_halves(float a, float b)
{
    return __uint_as_float((__float_as_uint(a) & 0xffffu) | __float_as_uint(b) << 16);
}
static __device__ __forceinline__ float upper_halves(float a, float b)
{
    return __uint_as_float(__float_as_uint(a) >> 16 | (__float_as_uint(b) & 0xffff0000u));
}

#ifndef CUDA_ON_CPU  // the tests, which run these files on a CPU, bring their own of these

// d += a b, by all lanes of a warp together
#define MULTIPLY(TYPES)                                                                         \
    asm volatile("mma.sync.aligned." TYPES ".f32 "                                              \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"              \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(__float_as_uint(a.x)), "r"(__float_as_uint(a.y)),                        \
                   "r"(__float_as_uint(a.z)), "r"(__float_as_uint(a.w)),                        \
                   "r"(__float_as_uint(b.x)), "r"(__float_as_uint(b.y)))
static __device__ __forceinline__ void mma(float (&d)[4], float4 a, float2 b)
{
    if (PAIR == 2)
        MULTIPLY("m16n8k16.row.col.f32.bf16.bf16");
    else
        MULTIPLY("m16n8k8.row.col.f32.tf32.tf32");
}

// Start to copy 16 bytes (zeros unless `inside`) to shared memory, past the registers. What was
// there is gone at once, and what is copied is there, for the thread that copies it, after
// wait_for_copies(); for the others after the next __syncthreads().
static __device__ __forceinline__ void copy_async(float4* to, const float4* from,
                                                  bool inside = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif

// FillOfATile::fetch from the packed maps of scan n, from channel c0 of `channels` on.
template <class FillOfATile>
static __device__ __forceinline__ void fetch_group(int part, float4* tile,
                                                   const stored* __restrict__ maps, int n,
                                                   int channels, int c0, int x0, int y0, int z0,
                                                   int depth, int height, int width)
{
    int groups = (channels + INNER - 1) / INNER, first = c0 / INNER;
    const float4* from = (const float4*)maps +
                         ((long long)n * groups + first) * depth * height * width * 2;
    FillOfATile::fetch(part, tile, from, groups - first, x0, y0, z0, depth, height, width);
}

// A tile of X x Y x Z voxels in 8 words: two halves of 4, each a float4 per voxel. PITCH puts the
// halves 16 banks apart. Then all 32 banks are met once by a warp that reads 8 neighbours along x in
// 4 pairs of words (as float2: half of the warp at a time), or 4 neighbours in all words (as float),
// and by 8 lanes that write the two halves of 4 neighbours.
//
// A tile is filled while another one is multiplied, by copies of 16 bytes: a voxel of a packed array
// is two of them. The work is cut into PARTS (of the tile's voxels), one after the other; GROUPS
// tiles are filled at a time by THREADS threads.
template <int X, int Y, int Z>
struct Tile {
    static constexpr int VOXELS = X * Y * Z, PITCH = VOXELS + (12 - VOXELS % 8) % 8;
    static constexpr int SIZE = 2 * PITCH + 4;  // in float4; the next tile begins 16 banks on

    // APART > 0: the words are 8 channels of the tile, and in bfloat16 their pairs are voxels, the
    // second APART planes on. A thread copies to a voxel's place 8 channels of the first and then 8
    // of the second, and pair_voxels, in the same thread, puts together what belongs together.
    template <int GROUPS, int PARTS, int THREADS_, int STEP = 1, int APART = 0>
    struct Fill {
        static constexpr bool VOXEL_PAIRS = PAIR == 2 && APART > 0;
        static constexpr int SOURCES = VOXEL_PAIRS ? GROUPS / 2 : GROUPS;  // packed groups
        static constexpr int LANES = THREADS_ / (2 * SOURCES), COUNT = (VOXELS + PARTS - 1) / PARTS;

        // Start to fill part `part` of the tiles from x, the first of `groups` packed groups, from
        // voxel (x0, y0, z0) on, every STEP-th along each axis; 0 where there is no voxel or group.
        static __device__ __forceinline__ void fetch(int part, float4* tile,
                                                     const float4* __restrict__ x, int groups,
                                                     int x0, int y0, int z0, int depth, int height,
                                                     int width)
        {
            asm volatile("" : "+r"(depth));  // so that no address is kept in a register for long
            long long voxels = (long long)depth * height * width;
            int half = threadIdx.x % 2, group = threadIdx.x / (2 * LANES);
            int v = part * COUNT + threadIdx.x / 2 % LANES, end = min((part + 1) * COUNT, VOXELS);
            tile += VOXEL_PAIRS ? (2 * group + half) * SIZE : group * SIZE + half * PITCH;
            #pragma unroll 1
            for (; v < end; v += LANES)
                #pragma unroll
                for (int p = 0; p < (VOXEL_PAIRS ? 2 : 1); ++p) {
                    int xx = x0 + v % X * STEP, yy = y0 + v / X % Y * STEP;
                    int zz = z0 + v / X / Y * STEP + p * APART;
                    bool inside = xx >= 0 && xx < width && yy >= 0 && yy < height && zz >= 0 &&
                                  zz < depth && group < groups;
                    const float4* from = x;  // anywhere, where nothing is read
                    if (inside) from += (group * voxels + (zz * height + yy) * width + xx) * 2 + half;
                    copy_async(tile + p * PITCH + v, from, inside);
                }
        }

        // After wait_for_copies(), in the threads that fetched the tiles.
        static __device__ __forceinline__ void pair_voxels(float4* tile)
        {
            if (!VOXEL_PAIRS) return;
            int half = threadIdx.x % 2, group = threadIdx.x / (2 * LANES);
            tile += (2 * group + half) * SIZE;
            for (int part = 0; part < PARTS; ++part) {
                int v = part * COUNT + threadIdx.x / 2 % LANES;
                #pragma unroll 1
                for (; v < min((part + 1) * COUNT, VOXELS); v += LANES) {
                    float4 a = tile[v], b = tile[PITCH + v];
                    tile[v] = make_float4(lower_halves(a.x, b.x), upper_halves(a.x, b.x),
                                          lower_halves(a.y, b.y), upper_halves(a.y, b.y));
                    tile[PITCH + v] = make_float4(lower_halves(a.z, b.z), upper_halves(a.z, b.z),
                                                  lower_halves(a.w, b.w), upper_halves(a.w, b.w));
                }
            }
        }
    };

    // From one tile of a volume, its pairs' second voxels Z planes on, to the next: along z, then
    // y, then x, then to the next scan.
    static __device__ __forceinline__ void next(int& z0, int& y0, int& x0, int& n, int depth,
                                                int height, int width)
    {
        if ((z0 += Z * PAIR) < depth) return;
        z0 = 0;
        if ((y0 += Y) < height) return;
        y0 = 0;
        if ((x0 += X) < width) return;
        x0 = 0;
        ++n;
    }
};

#endif

// Tensor cores: what they multiply, and tiles in shared memory that feed them without bank
// conflicts. Included by tensor.cu and folded.cu, and with BF16 by tensor_bf16.cu.
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
// With BF16 each of these registers, and so each float of a tile and of the weights, is a PAIR of
// factors rounded to bfloat16 (7 bits of mantissa, an error of at most 2^-8), side by side in 32
// bits: A is 16 x 16, B 16 x 8, and an mma adds up twice as many products in the same time. The
// loops over a tile do not know what its floats hold. A pair is any two things that the sum runs
// over: channels c and c + 8 here, or a voxel and the one some planes on (of x and dy alike, so
// that every tap takes both by the same shift).
#ifdef BF16
#define PAIR 2
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define PAIR 1
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
#endif
#define PIECE (CHANNELS * PAIR)  // channels of a tile whose pairs are channels

#ifndef CUDA_ON_CPU  // the tests, which run these files on a CPU, bring their own of these

// x rounded to TF32 (to the nearest, halves away from zero), or the pair x, y (halves to even)
static __device__ __forceinline__ float to_factor(float x, float y)
{
    unsigned bits;
#ifdef BF16
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(x), "f"(y));
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return __uint_as_float(bits);
}

// d += a b, by all lanes of a warp together
static __device__ __forceinline__ void mma(float (&d)[4], float4 a, float2 b)
{
    asm volatile(
        MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a.x)), "r"(__float_as_uint(a.y)), "r"(__float_as_uint(a.z)),
          "r"(__float_as_uint(a.w)), "r"(__float_as_uint(b.x)), "r"(__float_as_uint(b.y)));
}

// Start to copy a number (0 unless `inside`) or four of them to shared memory, past the registers.
// What was there is gone at once, and what is copied is there, for the thread that copies it, after
// wait_for_copies(); for the others after the next __syncthreads().
static __device__ __forceinline__ void copy_async(float* to, const float* from, bool inside)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(inside ? 4 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_async(float4* to, const float4* from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
}
static __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif

// A tile of X x Y x Z voxels in 8 channels: two halves of 4 channels, each a float4 a voxel. PITCH
// puts the halves 16 banks apart. Then all 32 banks are met once by a warp that reads 8 neighbours
// along x in 4 pairs of channels (as float2: half of the warp at a time), or 4 neighbours in all
// channels (as float), and by 8 lanes that write the float4 of 8 neighbours.
//
// A tile is filled while another one is multiplied: `fetch` starts the copies, and once they are
// there `settle` rounds them, each thread those that it has copied itself. The work is cut into
// PARTS (of the tile's voxels), one after the other; GROUPS tiles are filled at a time, THREADS
// threads do it, THREADS / (2 GROUPS) for each half of a tile.
template <int X, int Y, int Z>
struct Tile {
    static constexpr int VOXELS = X * Y * Z, PITCH = VOXELS + (12 - VOXELS % 8) % 8;
    static constexpr int SIZE = 2 * PITCH;  // in float4

    template <int GROUPS, int PARTS, int THREADS_, int STEP = 1, int APART = 0>
    struct Fill {
        static constexpr int LANES = THREADS_ / (2 * GROUPS), COUNT = (VOXELS + PARTS - 1) / PARTS;
        // Where a pair's second numbers wait to be joined to the first, in float4: `stage`.
        static constexpr int STAGE = PAIR == 2 ? 2 * GROUPS * COUNT : 0;

        // Start to fill part `part` of the tiles from x: the first `channels` channels, in groups
        // of 8, from voxel (x0, y0, z0) on, every STEP-th along each axis; 0 where there is no
        // voxel or no channel. A pair's second is APART planes on, or (APART = 0) 8 channels.
        static __device__ __forceinline__ void fetch(int part, float4* tile, float4* stage,
                                                     const float* __restrict__ x, int channels,
                                                     int x0, int y0, int z0, int depth, int height,
                                                     int width)
        {
            asm volatile("" : "+r"(depth));  // so that no address is kept in a register for long
            long long voxels = (long long)depth * height * width;
            int half = threadIdx.x / LANES, c0 = half / 2 * CHANNELS + half % 2 * 4;
            int v = part * COUNT + threadIdx.x % LANES, end = min((part + 1) * COUNT, VOXELS);
            x += c0 * voxels;
            tile += half / 2 * SIZE + half % 2 * PITCH;
            stage += half * COUNT - part * COUNT;
            #pragma unroll 1
            for (; v < end; v += LANES)
                #pragma unroll
                for (int p = 0; p < PAIR; ++p) {
                    int xx = x0 + v % X * STEP, yy = y0 + v / X % Y * STEP;
                    int zz = z0 + v / X / Y * STEP + p * APART;
                    bool inside = xx >= 0 && xx < width && yy >= 0 && yy < height && zz >= 0 &&
                                  zz < depth;
                    int first = APART ? 0 : p * CHANNELS, left = inside ? channels - c0 - first : 0;
                    const float* from = x - c0 * voxels;  // anywhere, where nothing is read
                    if (left > 0) from = x + first * voxels + (zz * height + yy) * width + xx;
                    float* to = (float*)((p ? stage : tile) + v);
                    #pragma unroll
                    for (int c = 0; c < 4; ++c)
                        copy_async(to + c, c < left ? from + c * voxels : from, c < left);
                }
        }

        // Round what fetch(part, ...) has copied, in the thread that has, after wait_for_copies().
        // Returns the sum over the voxels of this thread's 4 channels, unrounded.
        static __device__ __forceinline__ float4 settle(int part, float4* tile, const float4* stage)
        {
            int half = threadIdx.x / LANES;
            int v = part * COUNT + threadIdx.x % LANES, end = min((part + 1) * COUNT, VOXELS);
            tile += half / 2 * SIZE + half % 2 * PITCH;
            stage += half * COUNT - part * COUNT;
            float4 sum = make_float4(0, 0, 0, 0);
            #pragma unroll 1
            for (; v < end; v += LANES) {
                float4 a = tile[v], b = make_float4(0, 0, 0, 0);
                if (PAIR == 2) b = stage[v];
                tile[v] = make_float4(to_factor(a.x, b.x), to_factor(a.y, b.y), to_factor(a.z, b.z),
                                      to_factor(a.w, b.w));
                sum.x += a.x + b.x, sum.y += a.y + b.y, sum.z += a.z + b.z, sum.w += a.w + b.w;
            }
            return sum;
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

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

#ifndef CUDA_ON_CPU  // the tests, which run these files on a CPU, bring their own of these two

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

#endif

// A tile of X x Y x Z voxels in 8 channels: two halves of 4 channels, each a float4 a voxel. PITCH
// puts the halves 16 banks apart. Then all 32 banks are met once by a warp that reads 8 neighbours
// along x in 4 pairs of channels (as float2: half of the warp at a time), or 4 neighbours in all
// channels (as float), and by 8 lanes that write the float4 of 8 neighbours.
template <int X, int Y, int Z>
struct Tile {
    static constexpr int VOXELS = X * Y * Z, PITCH = VOXELS + (12 - VOXELS % 8) % 8;
    static constexpr int SIZE = 2 * PITCH;  // in float4

    // Fill GROUPS tiles, one after the other, from x: the first `channels` channels, in groups of
    // 8, from voxel (x0, y0, z0) on, every STEP-th along each axis, rounded; 0 where there is no
    // voxel or no channel. A pair's second is APART planes on, or (APART = 0, one tile) 8 channels.
    // True if this thread met anything but 0.
    template <int GROUPS, int STEP = 1, int APART = 0>
    static __device__ __forceinline__ bool fill(float4* tile, const float* __restrict__ x,
                                                int channels, int x0, int y0, int z0, int depth,
                                                int height, int width)
    {
        long long voxels = (long long)depth * height * width;
        bool any = false;
        #pragma unroll 1
        for (int e = threadIdx.x; e < GROUPS * VOXELS; e += blockDim.x) {
            int group = GROUPS == 1 ? 0 : e / VOXELS, v = e - group * VOXELS;
            float value[PAIR][CHANNELS];
            #pragma unroll
            for (int p = 0; p < PAIR; ++p) {
                int xx = x0 + v % X * STEP, yy = y0 + v / X % Y * STEP;
                int zz = z0 + v / X / Y * STEP + p * APART;
                bool inside = xx >= 0 && xx < width && yy >= 0 && yy < height && zz >= 0 &&
                              zz < depth;
                int first = (APART ? group : group + p) * CHANNELS;
                int left = inside ? channels - first : 0;
                int place = inside ? (zz * height + yy) * width + xx : 0;
                const float* from = x + first * voxels + place;
                #pragma unroll
                for (int c = 0; c < CHANNELS; ++c, from += voxels)  // 8 loads under way at a time
                    value[p][c] = c < left ? *from : 0.0f;
            }
            float f[CHANNELS];
            #pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                any |= value[0][c] != 0 || value[PAIR - 1][c] != 0;
                f[c] = to_factor(value[0][c], value[PAIR - 1][c]);
            }
            float4* to = tile + group * SIZE + v;
            to[0] = make_float4(f[0], f[1], f[2], f[3]);
            to[PITCH] = make_float4(f[4], f[5], f[6], f[7]);
        }
        return any;
    }

    // From one tile of a volume, its pairs' second voxels Z planes on, to the next: along z, then
    // y, then x, then to the next scan.
    static __device__ __forceinline__ void next(int& z0, int& y0, int& x0, long long& n, int depth,
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

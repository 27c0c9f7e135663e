// Kernels without a fault: what barriers, shared memory and warp operations must give.

// y is x with every block of 64 reversed; n is a multiple of 64
extern "C" __global__ void reverse_blocks(const real* __restrict__ x, real* __restrict__ y)
{
    __shared__ real tile[64];
    int t = threadIdx.x;
    long long first = (long long)blockIdx.x * 64;
    tile[t] = x[first + t];
    __syncthreads();
    y[first + t] = tile[63 - t];
}

__device__ __forceinline__ real warp_sum(real value)
{
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
        value += __shfl_down_sync(0xffffffffu, value, delta);
    return value;
}

// y[block] = the sum of the block's n/gridDim values, by warps, then over the warps' sums
extern "C" __global__ void __launch_bounds__(256)
block_sums(const real* __restrict__ x, real* __restrict__ y, int per_block)
{
    __shared__ real partial[8];
    int t = threadIdx.x;
    real sum = 0;
    for (int i = t; i < per_block; i += blockDim.x)
        sum += x[(long long)blockIdx.x * per_block + i];
    sum = warp_sum(sum);
    if (t % warpSize == 0)
        partial[t / warpSize] = sum;
    __syncthreads();
    if (t < warpSize) {
        sum = warp_sum(t < blockDim.x / warpSize ? partial[t] : (real)0);
        if (t == 0)
            y[blockIdx.x] = sum;
    }
}

// each row of y is what one warp operation gives its 32 lanes; x holds lane numbers
extern "C" __global__ void warp_operations(const real* __restrict__ x, real* __restrict__ y,
                                           int* __restrict__ votes)
{
    int lane = threadIdx.x;
    real v = x[lane];
    y[lane] = __shfl_sync(0xffffffffu, v, 5);
    y[32 + lane] = __shfl_up_sync(0xffffffffu, v, 3);
    y[64 + lane] = __shfl_down_sync(0xffffffffu, v, 3, 8);
    y[96 + lane] = __shfl_xor_sync(0xffffffffu, v, 6);
    y[128 + lane] = __shfl_sync(0xffffffffu, v, lane + 1, 4);
    votes[lane] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    votes[32 + lane] = __any_sync(0xffffffffu, lane == 7) + 2 * __all_sync(0xffffffffu, lane < 31);
    if (lane < 16) {  // half a warp
        v += __shfl_xor_sync(0x0000ffffu, v, 8);
        __syncwarp(0x0000ffffu);
    }
    y[160 + lane] = v;
}

// where each thread is: x, y, z of the thread and of the block, as one number
extern "C" __global__ void where_am_i(int* __restrict__ y)
{
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    y[block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread] =
        ((blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x) * 1000
        + (threadIdx.z * 10 + threadIdx.y) * 10 + threadIdx.x;
}

// counts the values above 0: integers may be added atomically, the sum has no order
extern "C" __global__ void count_positive(const real* __restrict__ x, int* __restrict__ count,
                                          int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] > 0)
        atomicAdd(count, 1);
}

// y[i] is 1 where some thread of the block holds x > 0
extern "C" __global__ void any_positive(const real* __restrict__ x, int* __restrict__ y)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __syncthreads_or(x[i] > 0) != 0;
    y[i] += 2 * (__syncthreads_or(0) != 0);
}

#define PAIR 1  // factors in a register: one, in TF32

// d (16, 8) += a (16, 8) b (8, 8), the lanes' shares as the PTX manual has them for m16n8k8 in TF32
extern "C" __global__ void multiply_matrices(const float* __restrict__ a,
                                             const float* __restrict__ b, float* __restrict__ d,
                                             int rounded)
{
    int g = threadIdx.x >> 2, t = threadIdx.x % 4;
    float4 of_a = make_float4(a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4],
                              a[(g + 8) * 8 + t + 4]);
    float2 of_b = make_float2(b[t * 8 + g], b[(t + 4) * 8 + g]);
    float of_d[4];
    for (int e = 0; e < 4; ++e)
        of_d[e] = d[(g + e / 2 * 8) * 8 + 2 * t + e % 2];
    if (rounded) {
        of_a = make_float4(round_to_tf32(of_a.x), round_to_tf32(of_a.y),
                           round_to_tf32(of_a.z), round_to_tf32(of_a.w));
        of_b = make_float2(round_to_tf32(of_b.x), round_to_tf32(of_b.y));
    }
    mma(of_d, of_a, of_b);
    for (int e = 0; e < 4; ++e)
        d[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = of_d[e];
}

#undef PAIR
#define PAIR 2  // two, in bfloat16

// d (16, 8) += a (16, 16) b (16, 8), rounded: the lanes' shares for m16n8k16 in bfloat16
extern "C" __global__ void multiply_pairs(const float* __restrict__ a, const float* __restrict__ b,
                                          float* __restrict__ d)
{
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float of_a[4], of_b[2], of_d[4];
    for (int r = 0; r < 4; ++r) {
        const float* first = a + (g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8;
        of_a[r] = __uint_as_float(pair_of_bfloat16(first[0], first[1]));
    }
    for (int r = 0; r < 2; ++r) {
        const float* first = b + (2 * t + r * 8) * 8 + g;
        of_b[r] = __uint_as_float(pair_of_bfloat16(first[0], first[8]));
    }
    for (int e = 0; e < 4; ++e)
        of_d[e] = d[(g + e / 2 * 8) * 8 + 2 * t + e % 2];
    mma(of_d, make_float4(of_a[0], of_a[1], of_a[2], of_a[3]), make_float2(of_b[0], of_b[1]));
    for (int e = 0; e < 4; ++e)
        d[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = of_d[e];
}

// y[row] is x[row] reversed, a block taking all rows in turn: while one is written the next is on
// its way to the other of two tiles. n rows of 64.
extern "C" __global__ void reverse_rows(const real* __restrict__ x, real* __restrict__ y, int n)
{
    extern __shared__ float tiles[];  // 2 x 64
    int t = threadIdx.x;
    copy_async(tiles + t, (const float*)x + t, true);
    for (int row = 0; row < n; ++row) {
        wait_for_copies();
        __syncthreads();  // everybody's copies are there, and the other tile has been read
        if (row + 1 < n)
            copy_async(tiles + (row + 1) % 2 * 64 + t, (const float*)x + (row + 1) * 64 + t, true);
        y[row * 64 + t] = tiles[row % 2 * 64 + 63 - t];
    }
}

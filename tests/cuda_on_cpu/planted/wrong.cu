// Kernels with one fault each, for the tests that show that the harness finds it.

// right.cu's reverse_blocks without its barrier
extern "C" __global__ void no_barrier(const real* __restrict__ x, real* __restrict__ y)
{
    __shared__ real tile[64];
    int t = threadIdx.x;
    long long first = (long long)blockIdx.x * 64;
    tile[t] = x[first + t];
    y[first + t] = tile[63 - t];  // here
}

// the tile is filled again before everybody has read it: the SECOND barrier of the loop is missing
extern "C" __global__ void one_barrier_of_two(const real* __restrict__ x, real* __restrict__ y,
                                              int rounds)
{
    __shared__ real tile[64];
    int t = threadIdx.x;
    real sum = 0;
    for (int r = 0; r < rounds; ++r) {
        tile[t] = x[r * 64 + t];  // here
        __syncthreads();
        sum += tile[63 - t];
    }
    y[t] = sum;
}

// a warp's lanes do not see each other's stores without __syncwarp
extern "C" __global__ void no_syncwarp(const real* __restrict__ x, real* __restrict__ y)
{
    __shared__ real tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x ^ 1];  // here
}

// reads one element behind x
extern "C" __global__ void reads_behind(const real* __restrict__ x, real* __restrict__ y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = x[i] + x[i + 1];  // here
}

// reads one element behind a shared array that lies before another one
extern "C" __global__ void reads_behind_shared(const real* __restrict__ x, real* __restrict__ y)
{
    __shared__ real tile[64];
    __shared__ real other[64];
    int t = threadIdx.x;
    tile[t] = other[t] = x[t];
    __syncthreads();
    const real* p = tile;
    y[t] = p[t + 1] + other[t];  // here
}

// writes one row too many when n is not a multiple of the block
extern "C" __global__ void no_guard(const real* __restrict__ x, real* __restrict__ y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = 2 * x[i < n ? i : 0];  // here
}

// the offset of channel c is computed in 32 bits
extern "C" __global__ void narrow_offset(real* __restrict__ y, int c, int voxels)
{
    y[threadIdx.x] = c * voxels > 0 ? 1 : 0;  // here
}

// half of the threads pass the barrier
extern "C" __global__ void divergent_barrier(real* __restrict__ y)
{
    if (threadIdx.x < blockDim.x / 2)
        __syncthreads();
    y[threadIdx.x] = 1;
}

// two barriers, one for each half
extern "C" __global__ void two_barriers(real* __restrict__ y)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

// threads without an output go home before the barrier
extern "C" __global__ void early_return(const real* __restrict__ x, real* __restrict__ y, int n)
{
    __shared__ real tile[64];
    int t = threadIdx.x, i = blockIdx.x * 64 + t;
    if (i >= n)
        return;
    tile[t] = x[i];
    __syncthreads();
    y[i] = tile[0];
}

// one half of the warp waits in a shuffle for the other, which waits at the barrier
extern "C" __global__ void deadlock(real* __restrict__ y)
{
    real v = threadIdx.x;
    if (threadIdx.x < 16)
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    __syncthreads();
    y[threadIdx.x] = v;
}

// takes a value from a lane that is not among those named
extern "C" __global__ void absent_lane(real* __restrict__ y)
{
    real v = 1;
    if (threadIdx.x < 16)
        v = __shfl_xor_sync(0x0000ffffu, v, 16);
    y[threadIdx.x] = v;
}

// a lane takes part in an operation whose mask does not name it
extern "C" __global__ void unnamed_lane(real* __restrict__ y)
{
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, (real)1, 0);
}

// leaves every third output out
extern "C" __global__ void unwritten(const real* __restrict__ x, real* __restrict__ y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && i % 3)
        y[i] = x[i];
}

// reads shared memory that nobody has written; the block before this one has filled it
extern "C" __global__ void unwritten_shared(const real* __restrict__ x, real* __restrict__ y,
                                            int* __restrict__ whole)
{
    __shared__ real tile[32];
    __shared__ int numbers[32];
    int t = threadIdx.x, i = blockIdx.x * 32 + t;
    y[i] = tile[t];
    whole[i] = numbers[t];
    tile[t] = x[t];
    numbers[t] = t;
}

// every block writes the same output: which one is last is anybody's guess
extern "C" __global__ void blocks_race(const real* __restrict__ x, real* __restrict__ y)
{
    __shared__ real tile[32];
    tile[threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[31 - threadIdx.x];  // here
}

// right.cu's reverse_rows, which does not wait for its copies
extern "C" __global__ void no_wait(const float* __restrict__ x, float* __restrict__ y, int n)
{
    extern __shared__ float tiles[];
    int t = threadIdx.x;
    copy_async(tiles + t, x + t, true);
    for (int row = 0; row < n; ++row) {
        __syncthreads();
        if (row + 1 < n)
            copy_async(tiles + (row + 1) % 2 * 64 + t, x + (row + 1) * 64 + t, true);
        y[row * 64 + t] = tiles[row % 2 * 64 + 63 - t];  // here
    }
}

// it waits, but only for the copies of the thread itself: the wait comes after the barrier
extern "C" __global__ void late_wait(const float* __restrict__ x, float* __restrict__ y, int n)
{
    extern __shared__ float tiles[];
    int t = threadIdx.x;
    copy_async(tiles + t, x + t, true);
    for (int row = 0; row < n; ++row) {
        __syncthreads();
        wait_for_copies();
        if (row + 1 < n)
            copy_async(tiles + (row + 1) % 2 * 64 + t, x + (row + 1) * 64 + t, true);
        y[row * 64 + t] = tiles[row % 2 * 64 + 63 - t];  // here
    }
}

// the next row's copies start before the barrier: others may still read the row before last
extern "C" __global__ void early_copy(const float* __restrict__ x, float* __restrict__ y, int n)
{
    extern __shared__ float tiles[];
    int t = threadIdx.x;
    copy_async(tiles + t, x + t, true);
    for (int row = 0; row < n; ++row) {
        wait_for_copies();
        if (row + 1 < n)
            copy_async(tiles + (row + 1) % 2 * 64 + t, x + (row + 1) * 64 + t, true);
        __syncthreads();
        y[row * 64 + t] = tiles[row % 2 * 64 + 63 - t];  // here
    }
}

// writes one element behind the dynamic shared memory
extern "C" __global__ void behind_dynamic(float* __restrict__ y)
{
    extern __shared__ float tiles[];
    tiles[threadIdx.x + 1] = 1;  // here
    y[threadIdx.x] = tiles[threadIdx.x];
}

#define PAIR 1  // factors in a register of a tensor core: one, in TF32

// half of the warp leaves before the product that takes all of it
extern "C" __global__ void half_a_warp(float* __restrict__ y)
{
    float d[4] = {0, 0, 0, 0};
    if (threadIdx.x >= 16) return;
    mma(d, make_float4(1, 1, 1, 1), make_float2(1, 1));
    y[threadIdx.x] = d[0];
}

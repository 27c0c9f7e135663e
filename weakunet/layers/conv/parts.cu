// The last step of a weight gradient: its sum over all voxels of all scans has been split across
// many blocks, each of which has left its part. They are added in their order: no atomics, hence
// the same bits every time. real is float or double.

// computes  result[t] = sum_s parts[s, t]
// threads   thread t owns result[t], t < size
// memory    reads `count` elements, writes 1 per output
// work      `count` additions per output, in the order of the parts: the same bits every time
// no race   every result[t] has one owner, and nothing that is read is written
extern "C" __global__ void conv3d_sum_parts(const real* __restrict__ parts,
                                            real* __restrict__ result, int count, int size)
{
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= size) return;
    real sum = 0;
    #pragma unroll 16  // so many reads under way at a time
    for (int s = 0; s < count; ++s)
        sum += parts[(long long)s * size + t];
    result[t] = sum;
}

#define UNFOLD_THREADS 256  // 64 folded taps of 4 filters

// computes  dw (filters, 3, 3, 3): the parts added up, and unfolded, dw[k] = dfold[2 - k] +
//           dfold[3 - k] along each axis; filters = C_out C_in
// threads   thread t sums folded tap t % 64 of a filter; 27 of each 64 then own an element of dw
// memory    reads 64 `count` / 27, writes 1 per output
// work      as many additions as reads, in the order of the parts, and 7 per output
// no race   every element of dw has one owner; __syncthreads() stands between the two steps
extern "C" __global__ void __launch_bounds__(UNFOLD_THREADS)
folded_tensor_unfold(const real* __restrict__ parts, real* __restrict__ dw, int count,
                     int filters)
{
    __shared__ real fold[UNFOLD_THREADS];
    long long t = (long long)blockIdx.x * UNFOLD_THREADS + threadIdx.x, size = 64LL * filters;
    real sum = 0;
    #pragma unroll 16  // so many reads under way at a time
    for (int s = 0; s < count; ++s)
        sum += t < size ? parts[s * size + t] : (real)0;
    fold[threadIdx.x] = sum;
    __syncthreads();
    int k = threadIdx.x % 64;
    if (t >= size || k >= 27) return;
    const real* own = fold + threadIdx.x - k + (2 - k / 9) * 16 + (2 - k / 3 % 3) * 4 + 2 - k % 3;
    real unfolded = 0;
    #pragma unroll
    for (int e = 0; e < 8; ++e)
        unfolded += own[e / 4 * 16 + e / 2 % 2 * 4 + e % 2];
    dw[t / 64 * 27 + k] = unfolded;
}

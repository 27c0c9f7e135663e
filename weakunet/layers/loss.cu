// The mean squared error of the count on the GPU; the numpy pair is in loss.py. real is float or
// double.

// computes  loss = 1/N sum_n (y[n] - t[n])^2
// threads   one: a batch is a few scans
// memory    reads 2 N elements, writes 1
// work      3 N FLOP, added in the order of the batch
// no race   there is one thread
extern "C" __global__ void mse_forward(const real* __restrict__ y, const real* __restrict__ t,
                                       real* __restrict__ loss, int n)
{
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    real sum = 0;
    for (int i = 0; i < n; ++i)
        sum += (y[i] - t[i]) * (y[i] - t[i]);
    loss[0] = sum / n;
}

static __device__ real bounded_error(real y, real t, real bound)
{
    real error = y - t;
    return error > bound ? bound : (error < -bound ? -bound : error);
}

// computes  dy[n] = 2 (e[n] - (1 - common) mean e) / N,  e = y - t within -bound ... bound
// threads   thread i owns dy[i]
// memory    reads 2 N elements (a batch is a few scans), writes 1 per output
// work      4 N FLOP per output, added in the order of the batch
// no race   every dy[i] has one owner, and nothing that is read is written
extern "C" __global__ void mse_backward(const real* __restrict__ y, const real* __restrict__ t,
                                        real* __restrict__ dy, real common, real bound, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    real sum = 0;
    for (int j = 0; j < n; ++j)
        sum += bounded_error(y[j], t[j], bound);
    dy[i] = 2 * (bounded_error(y[i], t[i], bound) - (1 - common) * sum / n) / n;
}

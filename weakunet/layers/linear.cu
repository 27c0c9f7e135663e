// The last layer, count = w . x + b, on the GPU; the numpy pair is in linear.py. real is float or
// double. A batch is a few scans and C a few dozen features: far too little to fill a GPU, so each
// thread simply loops.

// computes  y[n] = sum_c x[n, c] w[c] + b
// threads   thread n owns y[n]
// memory    reads 2 C + 1 elements, writes 1 per output
// work      2 C FLOP per output
// no race   every y[n] has one owner, and nothing that is read is written
extern "C" __global__ void linear_forward(const real* __restrict__ x, const real* __restrict__ w,
                                          const real* __restrict__ b, real* __restrict__ y,
                                          int scans, int channels)
{
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= scans) return;
    real sum = 0;
    for (int c = 0; c < channels; ++c)
        sum += x[(long long)n * channels + c] * w[c];
    y[n] = sum + b[0];
}

// computes  dx[n, c] = dy[n] w[c],  dw[c] = sum_n dy[n] x[n, c],  db = sum_n dy[n]
// threads   thread c < C owns dw[c] and the column dx[:, c]; thread C owns db
// memory    reads 2 N + 1 elements, writes N + 1 per thread
// work      3 N FLOP per thread
// no race   every output has one owner, which adds in the order of the batch
extern "C" __global__ void linear_backward(const real* __restrict__ dy,
                                           const real* __restrict__ x,
                                           const real* __restrict__ w, real* __restrict__ dx,
                                           real* __restrict__ dw, real* __restrict__ db,
                                           int scans, int channels)
{
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c > channels) return;
    real sum = 0;
    for (int n = 0; n < scans; ++n) {
        if (c < channels) {
            long long place = (long long)n * channels + c;
            dx[place] = dy[n] * w[c];
            sum += dy[n] * x[place];
        } else {
            sum += dy[n];
        }
    }
    if (c < channels)
        dw[c] = sum;
    else
        db[0] = sum;
}

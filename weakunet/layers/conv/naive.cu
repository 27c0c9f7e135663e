// 3D convolution on the GPU, zero padded, stride 1, one thread per output and nothing shared; the
// numpy pair is in conv3d.py, the launches are in gpu.py. real is float or double. The forward one
// also reads packed arrays (packed.py), INNER channels of a voxel side by side.
//
//     y[n, o, z, y, x] = b[o] + sum_{c, i, j, m} w[o, c, i, j, m] x[n, c, z+i-p, y+j-p, x+m-p]
//
// with p = (k-1)/2 and x = 0 outside the volume. These kernels say just that; tiled.cu
// computes the same numbers fast.
#include "packed.cuh"

// computes  the equation above
// threads   thread t owns y[t], t < total = N C_out D H W
// memory    reads k^3 C_in elements of x and of w, writes 1 per output: neighbours read the same
//           ones again, so the caches see far more traffic than is needed
// work      2 k^3 C_in FLOP per output
// no race   every y[t] has one owner, and nothing that is read is written
extern "C" __global__ void conv3d_forward_naive(const stored* __restrict__ x,
                                                const real* __restrict__ w,
                                                const real* __restrict__ b, real* __restrict__ y,
                                                int c_in, int c_out, int k, int depth, int height,
                                                int width, long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int xx = (int)(t % width), yy = (int)(t / width % height);
    int zz = (int)(t / width / height % depth), p = (k - 1) / 2;
    long long map = t / width / height / depth, n = map / c_out, o = map % c_out;
    int groups = (c_in + INNER - 1) / INNER;
    real sum = b[o];
    for (int c = 0; c < c_in; ++c)
        for (int i = 0; i < k; ++i)
            for (int j = 0; j < k; ++j)
                for (int m = 0; m < k; ++m) {
                    int z = zz + i - p, y_ = yy + j - p, x_ = xx + m - p;
                    if (z < 0 || z >= depth || y_ < 0 || y_ >= height || x_ < 0 || x_ >= width)
                        continue;
                    real weight = w[(((o * c_in + c) * k + i) * k + j) * k + m];
                    long long group = n * groups + c / INNER;
                    long long voxel = ((group * depth + z) * height + y_) * width + x_;
                    sum += weight * (real)x[voxel * INNER + c % INNER];
                }
    y[t] = sum;
}

// computes  dx[n, c, z, y, x] = sum_{o, i, j, m} w[o, c, i, j, m] dy[n, o, z-i+p, y-j+p, x-m+p]:
//           every output that x[n, c, z, y, x] went into sends back its gradient times that weight
// threads   thread t owns dx[t], t < total = N C_in D H W
// memory    as forward, with C_out for C_in
// work      2 k^3 C_out FLOP per output
// no race   a gather: every dx[t] has one owner, and nothing that is read is written
extern "C" __global__ void conv3d_backward_input_naive(const real* __restrict__ dy,
                                                       const real* __restrict__ w,
                                                       real* __restrict__ dx, int c_in, int c_out,
                                                       int k, int depth, int height, int width,
                                                       long long total)
{
    long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int xx = (int)(t % width), yy = (int)(t / width % height);
    int zz = (int)(t / width / height % depth), p = (k - 1) / 2;
    long long map = t / width / height / depth, n = map / c_in, c = map % c_in;
    real sum = 0;
    for (int o = 0; o < c_out; ++o)
        for (int i = 0; i < k; ++i)
            for (int j = 0; j < k; ++j)
                for (int m = 0; m < k; ++m) {
                    int z = zz - i + p, y_ = yy - j + p, x_ = xx - m + p;
                    if (z < 0 || z >= depth || y_ < 0 || y_ >= height || x_ < 0 || x_ >= width)
                        continue;
                    real weight = w[(((o * (long long)c_in + c) * k + i) * k + j) * k + m];
                    sum += weight * dy[(((n * c_out + o) * depth + z) * height + y_) * width + x_];
                }
    dx[t] = sum;
}

// computes  dw[o, c, i, j, m] = sum_{n, z, y, x} dy[n, o, z, y, x] x[n, c, z+i-p, y+j-p, x+m-p]
// threads   thread t owns dw[t], t < total = C_out C_in k^3
// memory    reads 2 N D H W elements, writes 1 per output; nothing is shared, and there are few
//           threads with much to do
// work      2 N D H W FLOP per output; a row is summed by itself first, so that in float the long
//           sum does not lose the small terms
// no race   every dw[t] has one owner, who adds in a fixed order
extern "C" __global__ void conv3d_backward_weight_naive(const real* __restrict__ dy,
                                                        const real* __restrict__ x,
                                                        real* __restrict__ dw, int scans, int c_in,
                                                        int c_out, int k, int depth, int height,
                                                        int width, int total)
{
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int p = (k - 1) / 2, m = t % k - p, j = t / k % k - p, i = t / k / k % k - p;
    int c = t / k / k / k % c_in, o = t / k / k / k / c_in;
    real sum = 0;
    for (int n = 0; n < scans; ++n)
        for (int z = max(0, -i); z < min(depth, depth - i); ++z)
            for (int y = max(0, -j); y < min(height, height - j); ++y) {
                const real* dy_row =
                    dy + ((((long long)n * c_out + o) * depth + z) * height + y) * width;
                const real* x_row =
                    x + ((((long long)n * c_in + c) * depth + z + i) * height + y + j) * width + m;
                real row = 0;
                for (int x_ = max(0, -m); x_ < min(width, width - m); ++x_)
                    row += dy_row[x_] * x_row[x_];
                sum += row;
            }
    dw[t] = sum;
}

// computes  db[o] = sum_{n, z, y, x} dy[n, o, z, y, x]
// threads   thread o owns db[o]
// memory    reads N D H W elements, writes 1 per output
// work      N D H W additions per output; a row is summed by itself first, as above
// no race   every db[o] has one owner, who adds in a fixed order
extern "C" __global__ void conv3d_backward_bias_naive(const real* __restrict__ dy,
                                                      real* __restrict__ db, int scans, int c_out,
                                                      int depth, int height, int width)
{
    int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= c_out) return;
    real sum = 0;
    for (int n = 0; n < scans; ++n)
        for (long long row = 0; row < (long long)depth * height; ++row) {
            const real* dy_row = dy + (((long long)n * c_out + o) * depth * height + row) * width;
            real row_sum = 0;
            for (int x = 0; x < width; ++x)
                row_sum += dy_row[x];
            sum += row_sum;
        }
    db[o] = sum;
}

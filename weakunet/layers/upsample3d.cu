// Nearest-neighbour upsampling by 2x2x2 on the GPU; the numpy pair is in upsample3d.py.
// real is float or double.
//
// h, w are the sizes of the SMALL volume. Batch, channel and depth are one running plane number:
// planes 2r and 2r + 1 of the large volume are copies of plane r of the small one.

// computes  y[2z+a, 2y+b, 2x+c] = x[z, y, x] for a, b, c in {0, 1}
// threads   thread i owns y[i], i < n = 8 x the small size
// memory    reads 1 element of x (shared by 8 threads, so mostly from the cache), writes 1
// work      none but the index
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void upsample3d_forward(const real* __restrict__ x, real* __restrict__ y,
                                              int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % (2 * w)), row = (int)(i / (2 * w) % (2 * h));
    long long plane = i / (2 * w) / (2 * h);
    y[i] = x[(plane / 2 * h + row / 2) * w + column / 2];
}

// computes  dx[z, y, x] = the sum of the eight dy[2z+a, 2y+b, 2x+c]
// threads   thread i owns dx[i]
// memory    reads 8 elements of dy, writes 1 per output; each dy is read once
// work      7 additions per output, along z, then y, then x as numpy does: the same bits
// no race   every dx[i] has one owner, and nothing that is read is written
extern "C" __global__ void upsample3d_backward(const real* __restrict__ dy, real* __restrict__ dx,
                                               int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % w), row = (int)(i / w % h);
    long long plane = i / w / h;
    long long step_y = 2 * w, step_z = 2 * h * step_y;
    const real* p = dy + 2 * plane * step_z + 2 * row * step_y + 2 * column;
    real left = (p[0] + p[step_z]) + (p[step_y] + p[step_z + step_y]);
    real right = (p[1] + p[step_z + 1]) + (p[step_y + 1] + p[step_z + step_y + 1]);
    dx[i] = left + right;
}

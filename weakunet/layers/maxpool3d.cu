// 2x2x2 max pooling on the GPU; the numpy pair is in maxpool3d.py. real is float or double.
//
// h, w are the sizes of the POOLED volume. Batch, channel and depth are one running plane
// number: plane r of the pooled volume comes from planes 2r and 2r + 1 of the full one.

// computes  y = the maximum of a 2x2x2 block of x, winner = its place 4a + 2b + c in the block
// threads   thread i owns y[i] and winner[i]
// memory    reads 8 elements of x, writes 1 element and 1 byte per output; each x is read once
// work      7 comparisons per output; > and not >=, so that the first of equals wins
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void maxpool3d_forward(const real* __restrict__ x, real* __restrict__ y,
                                             unsigned char* __restrict__ winner, int h, int w,
                                             long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % w), row = (int)(i / w % h);
    long long plane = i / w / h;
    long long first = (2 * plane * 2 * h + 2 * row) * 2 * w + 2 * column;
    real best = x[first];
    int best_place = 0;
    for (int place = 1; place < 8; ++place) {
        int a = place >> 2, b = place >> 1 & 1, c = place & 1;  // along z, y, x
        real value = x[first + ((long long)a * 2 * h + b) * 2 * w + c];
        if (value > best) {
            best = value;
            best_place = place;
        }
    }
    y[i] = best;
    winner[i] = (unsigned char)best_place;
}

// computes  dx = dy of the block where this voxel won, else 0
// threads   thread i owns dx[i], i < n = 8 x the pooled size
// memory    reads 1 element of dy and 1 byte (each shared by 8 threads), writes 1 element per output
// work      1 comparison per output
// no race   a gather: the voxel looks up whether it won, so every dx[i] has one owner
extern "C" __global__ void maxpool3d_backward(const real* __restrict__ dy,
                                              const unsigned char* __restrict__ winner,
                                              real* __restrict__ dx, int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % (2 * w)), row = (int)(i / (2 * w) % (2 * h));
    long long plane = i / (2 * w) / (2 * h);
    long long block = (plane / 2 * h + row / 2) * w + column / 2;
    int place = (int)(plane & 1) * 4 + (row & 1) * 2 + (column & 1);
    dx[i] = winner[block] == place ? dy[block] : (real)0;
}

// computes  dx = dskip + (dy of the block where this voxel won, else 0), and 0 where y is not
//           positive: where a skip connection leaves, y = max(x, 0) is pooled and goes on as it is
// threads   thread i owns dx[i], i < n = 8 x the pooled size
// memory    reads 2 elements and what the pooling's backward reads, writes 1 element per output:
//           13 bytes (of float) in one pass; the three steps apart move 37
// work      2 comparisons and 1 addition per output
// no race   as above
extern "C" __global__ void maxpool3d_backward_skip(const real* __restrict__ dy,
                                                   const unsigned char* __restrict__ winner,
                                                   const real* __restrict__ dskip,
                                                   const real* __restrict__ y,
                                                   real* __restrict__ dx, int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % (2 * w)), row = (int)(i / (2 * w) % (2 * h));
    long long plane = i / (2 * w) / (2 * h);
    long long block = (plane / 2 * h + row / 2) * w + column / 2;
    int place = (int)(plane & 1) * 4 + (row & 1) * 2 + (column & 1);
    real sum = (winner[block] == place ? dy[block] : (real)0) + dskip[i];
    dx[i] = y[i] > 0 ? sum : (real)0;
}

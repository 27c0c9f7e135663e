// 2x2x2 max pooling on the GPU; the numpy pair is in maxpool3d.py. stored is what the arrays hold:
// float or double, or the rounded numbers of packed arrays, INNER channels of a voxel side by side
// (conv/packed.py).
//
// h, w are the sizes of the POOLED volume. Batch, channel (of a packed array: group of channels) and
// depth are one running plane number: plane r of the pooled volume comes from planes 2r and 2r + 1
// of the full one.
#include "conv/packed.cuh"

// Where the 2x2x2 block of element i of the pooled array begins in the full one, and its voxels.
struct Block {
    long long first, step_z;
    int step_y;

    __device__ Block(long long i, int h, int w)
    {
        long long voxel = i / INNER, plane = voxel / w / h;
        int column = (int)(voxel % w), row = (int)(voxel / w % h);
        first = ((2 * plane * 2 * h + 2 * row) * 2 * w + 2 * column) * INNER + i % INNER;
        step_z = 2LL * h * 2 * w * INNER;
        step_y = 2 * w * INNER;
    }

    __device__ long long at(int place) const  // 4a + 2b + c, along z, y, x
    {
        return first + (place >> 2) * step_z + (place >> 1 & 1) * step_y + (place & 1) * INNER;
    }
};

// computes  y = the maximum of a 2x2x2 block of x, winner = its place 4a + 2b + c in the block
// threads   thread i owns y[i] and winner[i]
// memory    reads 8 elements of x, writes 1 element and 1 byte per output; each x is read once
// work      7 comparisons per output; > and not >=, so that the first of equals wins
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void maxpool3d_forward(const stored* __restrict__ x, stored* __restrict__ y,
                                             unsigned char* __restrict__ winner, int h, int w,
                                             long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Block block(i, h, w);
    stored best = x[block.at(0)];
    int best_place = 0;
    for (int place = 1; place < 8; ++place) {
        stored value = x[block.at(place)];
        if (value > best) {
            best = value;
            best_place = place;
        }
    }
    y[i] = best;
    winner[i] = (unsigned char)best_place;
}

// computes  dx = dy of the block where this voxel won, else 0
// threads   thread i owns the 8 voxels of block i, i < n, the pooled size
// memory    reads 1 element and 1 byte, writes 8 elements per block
// work      8 comparisons per block
// no race   every voxel is in one block
extern "C" __global__ void maxpool3d_backward(const stored* __restrict__ dy,
                                              const unsigned char* __restrict__ winner,
                                              stored* __restrict__ dx, int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Block block(i, h, w);
    for (int place = 0; place < 8; ++place)
        dx[block.at(place)] = winner[i] == place ? dy[i] : (stored)0;
}

// computes  dx = dskip + (dy of the block where this voxel won, else 0), and 0 where y is not
//           positive: where a skip connection leaves, y = max(x, 0) is pooled and goes on as it is
// threads   thread i owns the 8 voxels of block i, i < n, the pooled size
// memory    reads 17 elements and 1 byte, writes 8 elements per block: 101 bytes (of float) in one
//           pass; the three steps apart move 297
// work      16 comparisons and 8 additions per block
// no race   as above
extern "C" __global__ void maxpool3d_backward_skip(const stored* __restrict__ dy,
                                                   const unsigned char* __restrict__ winner,
                                                   const stored* __restrict__ dskip,
                                                   const stored* __restrict__ y,
                                                   stored* __restrict__ dx, int h, int w,
                                                   long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Block block(i, h, w);
    real pooled = dy[i];
    for (int place = 0; place < 8; ++place) {
        long long at = block.at(place);
        real sum = (winner[i] == place ? pooled : (real)0) + (real)dskip[at];
        dx[at] = (real)y[at] > 0 ? (stored)sum : (stored)0;
    }
}

// Exercise 7: a convolution from tiles in shared memory. real is float or double.
//
// One slice with several channels; the third axis would be one more loop:
//     y[row, column] = sum over c, j, m of w[c, j, m] x[c, row+j-1, column+m-1], x zero outside
//
// A block has 16 x 16 threads and owns a tile of 16 x 16 outputs. Together they see 18 x 18 voxels
// of each channel: the tile and a halo of one voxel around it. The naive kernel reads each of those
// 9 times from global memory. Here the block copies them ONCE into `tile`, which all its threads
// share, and reads from there.
//
// Threads do not run in step. __syncthreads() makes each wait until all threads of the block have
// reached it. Every channel needs two of them: which steps must not overlap?

#define TILE 16
#define HALO 18  // TILE + 2

extern "C" __global__ void conv2d_tiled(const real* __restrict__ x, const real* __restrict__ w,
                                        real* __restrict__ y, int c_in, int height, int width)
{
    __shared__ real tile[HALO * HALO];
    int column = blockIdx.x * TILE + threadIdx.x, row = blockIdx.y * TILE + threadIdx.y;
    int thread = threadIdx.y * TILE + threadIdx.x;  // 0 ... 255

    // yours to write: for each channel c
    //   1. fill the tile: 324 voxels, 256 threads. Thread t takes t, t + 256, ... < 324. Voxel e of
    //      the tile is (e / HALO, e % HALO); in the slice it lies at row blockIdx.y * TILE +
    //      e / HALO - 1, and so on. Where that is outside the slice, the tile gets 0.
    //   2. add the channel's 9 products to a sum of your own (a register)
    // at the end: if this thread has an output, y[row * width + column] = sum. Threads without an
    // output must reach every __syncthreads(), too: no early return.
}

// Global pooling on the GPU; the numpy pair is in globalpool3d.py. real is float or double.
//
// A whole feature map becomes one number, which is more than one block of threads should do alone.
// So there are two passes: `parts` blocks share a map and each leaves one partial result, then one
// thread per map goes through the partial results in order. No atomics, hence the same bits every
// time. A map is a run of `voxels` elements; "map" counts batch and channel together.
//
// The local maxima are also taken from packed maps (conv/packed.py), INNER channels of a voxel side
// by side; `stored` is what an array of either kind holds.
#include "conv/packed.cuh"

#define THREADS 256

// computes  the maximum over one part of a map, and its voxel; the first in memory order wins
// threads   block (p, m) owns part p of map m: voxels THREADS p + t + i THREADS parts of thread t
// memory    reads each voxel once, writes 2 elements a block; the threads of a block join their
//           results in shared memory, in a tree
// work      1 comparison a voxel
// no race   in each round of the tree a thread writes only its own place, and reads places that
//           nobody writes in that round; __syncthreads() separates the rounds
extern "C" __global__ void globalmax_parts(const real* __restrict__ x, real* __restrict__ part_max,
                                           long long* __restrict__ part_argmax, long long voxels)
{
    __shared__ real shared_max[THREADS];
    __shared__ long long shared_at[THREADS];
    const real* map = x + blockIdx.y * voxels;
    int t = threadIdx.x;
    real best = map[0];  // every thread may start from voxel 0: it belongs to the map
    long long at = 0;
    for (long long v = (long long)blockIdx.x * THREADS + t; v < voxels;
         v += (long long)gridDim.x * THREADS)
        if (map[v] > best) {
            best = map[v];
            at = v;
        }
    shared_max[t] = best;
    shared_at[t] = at;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) {
            real other = shared_max[t + half];
            long long other_at = shared_at[t + half];
            if (other > shared_max[t] || (other == shared_max[t] && other_at < shared_at[t])) {
                shared_max[t] = other;
                shared_at[t] = other_at;
            }
        }
        __syncthreads();
    }
    if (t == 0) {
        part_max[(long long)blockIdx.y * gridDim.x + blockIdx.x] = shared_max[0];
        part_argmax[(long long)blockIdx.y * gridDim.x + blockIdx.x] = shared_at[0];
    }
}

// computes  y = the maximum of a map and argmax = its voxel, from the parts
// threads   thread m owns map m
// memory    reads 2 x parts elements, writes 2 a map
// work      `parts` comparisons a map
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void globalmax_forward(const real* __restrict__ part_max,
                                             const long long* __restrict__ part_argmax,
                                             real* __restrict__ y, long long* __restrict__ argmax,
                                             int parts, int maps)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= maps) return;
    long long best = (long long)m * parts;
    for (long long p = best + 1; p < (long long)(m + 1) * parts; ++p)
        if (part_max[p] > part_max[best] ||
            (part_max[p] == part_max[best] && part_argmax[p] < part_argmax[best]))
            best = p;
    y[m] = part_max[best];
    argmax[m] = part_argmax[best];
}

// computes  dx = dy of the map at its maximum, else 0
// threads   thread i owns dx[i], i < n = maps x voxels
// memory    reads 2 elements a map (from the cache), writes 1 an output
// work      1 comparison an output
// no race   a gather: the voxel looks up whether it won, so every dx[i] has one owner
extern "C" __global__ void globalmax_backward(const real* __restrict__ dy,
                                              const long long* __restrict__ argmax,
                                              real* __restrict__ dx, long long voxels, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long m = i / voxels;
    dx[i] = argmax[m] == i % voxels ? dy[m] : (real)0;
}

// computes  the sum over one part of a map
// threads   block (p, m) owns part p of map m, as in globalmax_parts
// memory    reads each voxel once, writes 1 element a block
// work      1 addition a voxel
// no race   as in globalmax_parts; each sum is formed in one fixed order
extern "C" __global__ void globalmean_parts(const real* __restrict__ x,
                                            real* __restrict__ part_sum, long long voxels)
{
    __shared__ real shared_sum[THREADS];
    const real* map = x + blockIdx.y * voxels;
    int t = threadIdx.x;
    real sum = 0;
    for (long long v = (long long)blockIdx.x * THREADS + t; v < voxels;
         v += (long long)gridDim.x * THREADS)
        sum += map[v];
    shared_sum[t] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half)
            shared_sum[t] += shared_sum[t + half];
        __syncthreads();
    }
    if (t == 0)
        part_sum[(long long)blockIdx.y * gridDim.x + blockIdx.x] = shared_sum[0];
}

// computes  y = the sum of a map's parts / divisor; the mean, where that is the number of voxels
// threads   thread m owns map m
// memory    reads `parts` elements, writes 1 a map
// work      `parts` additions a map, in the order of the parts
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void globalmean_forward(const real* __restrict__ part_sum,
                                              real* __restrict__ y, int parts, real divisor,
                                              int maps)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= maps) return;
    real sum = 0;
    for (int p = 0; p < parts; ++p)
        sum += part_sum[(long long)m * parts + p];
    y[m] = sum / divisor;
}

// computes  dx = dy of the map / voxels
// threads   thread i owns dx[i], i < n = maps x voxels
// memory    reads 1 element a map (from the cache), writes 1 an output
// work      1 division an output
// no race   every dx[i] has one owner
extern "C" __global__ void globalmean_backward(const real* __restrict__ dy, real* __restrict__ dx,
                                               long long voxels, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        dx[i] = dy[i / voxels] / (real)voxels;
}

// computes  the maximum of each k x k x k block of a map over the voxels of the region, and its
//           voxel's number in the map; 0 and -1 where the block does not touch the region. The
//           first in memory order wins, and the last block along an axis may be smaller. They are
//           then summed by globalmean_parts and globalmean_forward.
// threads   thread i owns block i; i counts map (of packed maps: group of them), block z, y, x, and
//           at last the maps of a group; there are n of them
// memory    reads each voxel once, with a byte of the region (one for the c maps of a scan, so
//           mostly from the cache), writes 2 elements per block
// work      1 test and 1 comparison per voxel
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void localmax_blocks(const stored* __restrict__ x,
                                           const unsigned char* __restrict__ region,
                                           real* __restrict__ block_max,
                                           long long* __restrict__ argmax, int k, int c, int d,
                                           int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int blocks_z = (d + k - 1) / k, blocks_y = (h + k - 1) / k, blocks_x = (w + k - 1) / k;
    int groups = (c + INNER - 1) / INNER, blocks = blocks_z * blocks_y * blocks_x;
    int block = (int)(i / INNER % blocks);
    long long group = i / INNER / blocks, scan = group / groups;
    int channel = (int)(group % groups * INNER + i % INNER);
    if (channel >= c) return;
    int x0 = block % blocks_x * k, y0 = block / blocks_x % blocks_y * k;
    int z0 = block / blocks_x / blocks_y * k;
    const stored* map = x + group * d * h * w * INNER + i % INNER;
    const unsigned char* inside = region + scan * d * h * w;
    real highest = 0;
    long long best = -1;
    for (int z = z0; z < min(z0 + k, d); ++z)
        for (int y = y0; y < min(y0 + k, h); ++y)
            for (int x_ = x0; x_ < min(x0 + k, w); ++x_) {
                long long v = ((long long)z * h + y) * w + x_;
                if (inside[v] && (best < 0 || (real)map[v * INNER] > highest)) {
                    best = v;
                    highest = map[v * INNER];
                }
            }
    long long place = (scan * c + channel) * blocks + block;
    block_max[place] = highest;
    argmax[place] = best;
}

// computes  the maximum of each 2 x 2 x 2 neighbours among blocks (bd, bh, bw), and its voxel's
//           number: those of overlapping blocks twice as large, (bd + 1, bh + 1, bw + 1) of them,
//           for the outermost reach over the edge. 0 and -1 where no neighbour touches the region.
// threads   thread i owns the larger block i; i counts map, block z, y, x, and there are n of them
// memory    reads up to 8 maxima and voxels (neighbouring threads share them), writes 2 elements
// work      8 comparisons per larger block
// no race   every output has one owner, and nothing that is read is written
extern "C" __global__ void localmax_join_eight(const real* __restrict__ maxima,
                                               const long long* __restrict__ argmax,
                                               real* __restrict__ larger_max,
                                               long long* __restrict__ larger_argmax, int bd,
                                               int bh, int bw, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = (int)(i % (bw + 1)), y = (int)(i / (bw + 1) % (bh + 1));
    int z = (int)(i / (bw + 1) / (bh + 1) % (bd + 1));
    long long map = i / (bw + 1) / (bh + 1) / (bd + 1) * bd * bh * bw;
    real best = 0;
    long long at = -1;
    for (int bz = max(z - 1, 0); bz < min(z + 1, bd); ++bz)
        for (int by = max(y - 1, 0); by < min(y + 1, bh); ++by)
            for (int bx = max(x - 1, 0); bx < min(x + 1, bw); ++bx) {
                long long block = map + ((long long)bz * bh + by) * bw + bx;
                real value = maxima[block];
                long long voxel = argmax[block];
                // ties go to the first in memory order
                bool better = at < 0 || value > best || (value == best && voxel < at);
                if (voxel >= 0 && better) {
                    best = value;
                    at = voxel;
                }
            }
    larger_max[i] = best;
    larger_argmax[i] = at;
}

// computes  dx = dy of the map / divisor, once for each block whose maximum this voxel is, where dx
//           is 0 to begin with. Blocks begin every `step` voxels and are `overlap` steps wide: 1 or
//           2. masked != 0: only where y, what was pooled, is positive (the backward of a ReLU).
// threads   thread i owns the voxels of one cell of step^3, all of which are in the same overlap^3
//           blocks; i counts map (c of them a scan), cell z, y, x, and there are n of them
// memory    reads overlap^3 argmax (from the cache, mostly) and 1 dy per cell, and y where a block
//           has its maximum; writes there
// work      overlap^6 comparisons per cell
// no race   every voxel is in one cell, and only that cell's owner writes there
extern "C" __global__ void localmax_backward(const real* __restrict__ dy,
                                             const long long* __restrict__ argmax,
                                             const stored* __restrict__ y,
                                             stored* __restrict__ dx, real divisor, int step,
                                             int overlap, int c, int d, int h, int w, int masked,
                                             long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int cells_z = (d - 1) / step + 1, cells_y = (h - 1) / step + 1, cells_x = (w - 1) / step + 1;
    int x = (int)(i % cells_x), y_ = (int)(i / cells_x % cells_y);
    int z = (int)(i / cells_x / cells_y % cells_z);
    long long m = i / cells_x / cells_y / cells_z, winner[8];
    long long map = (m / c * ((c + INNER - 1) / INNER) + m % c / INNER) * d * h * w;
    for (int e = 0; e < 8; ++e) {
        int oz = e / 4, oy = e / 2 % 2, ox = e % 2, more = overlap - 1;
        long long block = ((m * (cells_z + more) + z + oz) * (cells_y + more) + y_ + oy) *
                              (cells_x + more) + x + ox;
        winner[e] = max(oz, max(oy, ox)) < overlap ? argmax[block] : -1;
    }
    for (int e = 0; e < 8; ++e) {
        long long v = winner[e], place = (map + v) * INNER + m % c % INNER;
        bool here = v >= 0 && v / w / h / step == z && v / w % h / step == y_ && v % w / step == x;
        if (!here || (masked && !((real)y[place] > 0))) continue;
        int won = 0;
        for (int other = 0; other < 8; ++other)
            won += winner[other] == v;
        dx[place] = won * (dy[m] / divisor);
    }
}

// Random transforms of a volume on the GPU; the numpy pair is in augment.py. real is float or
// double.

// One of the eight neighbours of a point; 0 outside the volume.
static __device__ real voxel(const real* __restrict__ x, int z, int y, int x_, int d, int h, int w)
{
    bool inside = z >= 0 && z < d && y >= 0 && y < h && x_ >= 0 && x_ < w;
    return inside ? x[((long long)z * h + y) * w + x_] : (real)0;
}

// computes  result(z, y, x) = x at matrix (z, y, x, 1): trilinear between the eight voxels around
//           that point, 0 outside; matrix (3, 4) as in augment.py, one for each volume of a batch.
//           A flip or a whole-voxel shift hits a voxel exactly and so copies it.
// threads   thread i owns result[i]
// memory    reads 8 elements (neighbouring threads share most of them) and the matrix, writes 1
// work      18 FLOP in double for the point (in float it would be off by 1e-5 voxel, which shows),
//           about 35 FLOP for the interpolation an output
// no race   every result[i] has one owner, and nothing that is read is written
extern "C" __global__ void warp(const real* __restrict__ x, const double* __restrict__ matrix,
                                real* __restrict__ result, int d, int h, int w, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int to_x = (int)(i % w), to_y = (int)(i / w % h), to_z = (int)(i / w / h % d);
    long long volume = i / w / h / d;
    x += volume * d * h * w;
    matrix += volume * 12;
    int first[3];      // the lowest of the eight voxels around the point, and
    real fraction[3];  // how far past it the point lies, in voxels
    for (int axis = 0; axis < 3; ++axis) {
        const double* row = matrix + 4 * axis;
        double at = row[0] * to_z + row[1] * to_y + row[2] * to_x + row[3];
        at = at < -1 ? -1 : (at > 2e9 ? 2e9 : at);  // far outside is outside, and fits an int
        first[axis] = (int)floor(at);
        fraction[axis] = (real)(at - first[axis]);
    }
    real sum = 0;
    for (int corner = 0; corner < 8; ++corner) {
        int a = corner >> 2, b = corner >> 1 & 1, c = corner & 1;  // along z, y, x
        real weight = (a ? fraction[0] : 1 - fraction[0]) * (b ? fraction[1] : 1 - fraction[1]) *
                      (c ? fraction[2] : 1 - fraction[2]);
        sum += weight * voxel(x, first[0] + a, first[1] + b, first[2] + c, d, h, w);
    }
    result[i] = sum;
}

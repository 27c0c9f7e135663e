#define TILE 16
#define HALO 18  // TILE + 2

extern "C" __global__ void conv2d_tiled(const real* __restrict__ x, const real* __restrict__ w,
                                        real* __restrict__ y, int c_in, int height, int width)
{
    __shared__ real tile[HALO * HALO];
    int column = blockIdx.x * TILE + threadIdx.x, row = blockIdx.y * TILE + threadIdx.y;
    int thread = threadIdx.y * TILE + threadIdx.x;  // 0 ... 255

    real sum = 0;
    for (int c = 0; c < c_in; ++c) {
        for (int e = thread; e < HALO * HALO; e += TILE * TILE) {
            int yy = blockIdx.y * TILE + e / HALO - 1, xx = blockIdx.x * TILE + e % HALO - 1;
            bool inside = yy >= 0 && yy < height && xx >= 0 && xx < width;
            tile[e] = inside ? x[(c * height + yy) * width + xx] : (real)0;
        }
        __syncthreads();  // the tile is filled
        for (int j = 0; j < 3; ++j)
            for (int m = 0; m < 3; ++m)
                sum += w[(c * 3 + j) * 3 + m] * tile[(threadIdx.y + j) * HALO + threadIdx.x + m];
        __syncthreads();  // everybody has read it: the next channel may overwrite it
    }
    if (row < height && column < width)
        y[row * width + column] = sum;
}

extern "C" __global__ void relu(const real* __restrict__ x, real* __restrict__ y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = x[i] > 0 ? x[i] : (real)0;
}

extern "C" __global__ void conv3d(const real* __restrict__ x, const real* __restrict__ w,
                                  real* __restrict__ y, int depth, int height, int width, int n)
{
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    int x0 = t % width, y0 = t / width % height, z0 = t / width / height;
    real sum = 0;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
            for (int m = 0; m < 3; ++m) {
                int zz = z0 + i - 1, yy = y0 + j - 1, xx = x0 + m - 1;
                bool inside = zz >= 0 && zz < depth && yy >= 0 && yy < height && xx >= 0 && xx < width;
                if (inside)
                    sum += w[(i * 3 + j) * 3 + m] * x[(zz * height + yy) * width + xx];
            }
    y[t] = sum;
}

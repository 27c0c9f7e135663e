// Does not compile: z is not declared (line 6).

extern "C" __global__ void does_not_compile(const real* __restrict__ x, real* __restrict__ y)
{
    int i = threadIdx.x;
    y[i] = x[i] + z;
}

// __shared__ inside a template: g++ ignores the section, so that it could not be refilled.

template <class T>
__device__ T twice(T value)
{
    __shared__ T tile[32];
    tile[threadIdx.x] = value;
    return 2 * tile[threadIdx.x];
}

extern "C" __global__ void template_shared(const real* __restrict__ x, real* __restrict__ y)
{
    y[threadIdx.x] = twice(x[threadIdx.x]);
}

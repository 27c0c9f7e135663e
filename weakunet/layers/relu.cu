// ReLU on the GPU; the numpy pair is in relu.py. stored is what the arrays hold: float or double, or
// rounded numbers (conv/packed.py).
#include "conv/packed.cuh"

// computes  y[i] = max(x[i], 0)
// threads   thread i owns y[i]
// memory    reads x once, writes y once: 2 elements per output, from global memory
// work      1 comparison per output
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void relu_forward(const stored* __restrict__ x,
                                        stored* __restrict__ y, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = x[i] < 0 ? (stored)0 : x[i];  // written this way round, NaN stays NaN as in numpy
}

// computes  dx[i] = dy[i] where y[i] > 0, else 0; y is the output of the forward pass
// threads   thread i owns dx[i]
// memory    reads dy and y once, writes dx once: 3 elements per output, from global memory
// work      1 comparison per output
// no race   every dx[i] has one owner, and nothing that is read is written
extern "C" __global__ void relu_backward(const stored* __restrict__ dy,
                                         const stored* __restrict__ y, stored* __restrict__ dx,
                                         long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        dx[i] = y[i] > 0 ? dy[i] : (stored)0;
}

// Between plain and packed arrays; packed.py has the picture.
#include "packed.cuh"

#define MIN_SM 80  // tensor cores take TF32 and bfloat16 from sm_80, Ampere, on

// computes  y, packed and rounded, of a plain x (N, C, voxels); 0 where there is no channel
// threads   thread i owns y[i], i < n = N x (C, padded to INNER) x voxels
// memory    reads 1 element of x, writes 1 per output
// work      1 rounding per output
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void pack(const float* __restrict__ x, stored* __restrict__ y, int channels,
                                long long voxels, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int groups = (channels + INNER - 1) / INNER;
    long long v = i / INNER % voxels, group = i / INNER / voxels, scan = group / groups;
    int c = (int)(group % groups) * INNER + (int)(i % INNER);
    y[i] = c < channels ? x[(scan * channels + c) * voxels + v] : 0.0f;
}

// computes  y, plain (N, C, voxels), of a packed x
// threads   thread i owns y[i], i < n = N C voxels
// memory    reads 1 element of x, writes 1 per output
// work      none but the index
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void unpack(const stored* __restrict__ x, float* __restrict__ y, int channels,
                                  long long voxels, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int groups = (channels + INNER - 1) / INNER, c = (int)(i / voxels % channels);
    long long v = i % voxels, group = i / voxels / channels * groups + c / INNER;
    y[i] = x[(group * voxels + v) * INNER + c % INNER];
}

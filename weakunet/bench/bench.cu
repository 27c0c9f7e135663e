// What a GPU can do at most, measured in the same run as the layers: its memory's and its
// multiply-adders' speed. real is float or double.

#define CHAINS 8  // independent sums a thread keeps, so that it need not wait for one of them

// computes  y = x
// threads   thread i owns y[i], and takes every (number of threads)-th element from there on
// memory    reads 1 element, writes 1 an output
// work      none
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void copy(const real* __restrict__ x, real* __restrict__ y, long long n)
{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        y[i] = x[i];
}

// computes  y[i] = the sum of CHAINS numbers, each steps times s <- a s + b, from s = 0, 1, 2, ...
// threads   thread i owns y[i], i < n
// memory    writes 1 an output
// work      2 CHAINS steps FLOP an output
// no race   every y[i] has one owner
extern "C" __global__ void multiply_add(real* __restrict__ y, real a, real b, int steps,
                                        long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    real s[CHAINS], sum = 0;
    #pragma unroll
    for (int c = 0; c < CHAINS; ++c)
        s[c] = c;
    #pragma unroll 16
    for (int step = 0; step < steps; ++step)
        #pragma unroll
        for (int c = 0; c < CHAINS; ++c)
            s[c] = a * s[c] + b;
    #pragma unroll
    for (int c = 0; c < CHAINS; ++c)
        sum += s[c];
    y[i] = sum;
}

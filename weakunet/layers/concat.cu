// Concatenation along the channels on the GPU; the numpy pair is in concat.py. real is float or
// double.
//
// The channels of one sample lie side by side in memory, so a sample of y is a sample of a followed
// by a sample of b; size_a and size_b are the elements of one sample, C_a D H W and C_b D H W.

// computes  y = [a; b]
// threads   thread i owns y[i], i < n = N (size_a + size_b)
// memory    reads 1 element of a or b, writes 1 per output
// work      none but the index
// no race   every y[i] has one owner, and nothing that is read is written
extern "C" __global__ void concat_forward(const real* __restrict__ a, const real* __restrict__ b,
                                          real* __restrict__ y, long long size_a,
                                          long long size_b, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long sample = i / (size_a + size_b), place = i % (size_a + size_b);
    y[i] = place < size_a ? a[sample * size_a + place] : b[sample * size_b + place - size_a];
}

// computes  da, db = the two parts of dy
// threads   thread i reads dy[i] and owns the one element of da or db that it goes to
// memory    reads 1 element, writes 1
// work      none but the index
// no race   i -> its place in da or db is one to one, and nothing that is read is written
extern "C" __global__ void concat_backward(const real* __restrict__ dy, real* __restrict__ da,
                                           real* __restrict__ db, long long size_a,
                                           long long size_b, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long sample = i / (size_a + size_b), place = i % (size_a + size_b);
    if (place < size_a)
        da[sample * size_a + place] = dy[i];
    else
        db[sample * size_b + place - size_a] = dy[i];
}

// Exercise 6: write the two kernels. real is float or double; keep names and parameters.
//
// Each thread runs this text once, with its own blockIdx.x (which block) and threadIdx.x (which
// thread in it); a block has blockDim.x threads. Its number in the whole grid is
//     blockIdx.x * blockDim.x + threadIdx.x
// and the grid may hold more threads than there are elements.

// y[i] = x[i] where x[i] > 0, else 0, for i < n
extern "C" __global__ void relu(const real* __restrict__ x, real* __restrict__ y, int n)
{
    // yours to write: which i is this thread's? is there such an element? then one line
}

// y[z, y, x] = sum over i, j, m = 0, 1, 2 of w[i, j, m] x[z+i-1, y+j-1, x+m-1], x zero outside
//
// One channel. One thread per output voxel: thread t owns y[t] and n = depth * height * width.
// Hint: x runs fastest, so t = (z * height + y) * width + x; take it apart with / and %. Check that
// a voxel is inside the volume before you read it: a wrong index reads something else, or the
// program dies.
extern "C" __global__ void conv3d(const real* __restrict__ x, const real* __restrict__ w,
                                  real* __restrict__ y, int depth, int height, int width, int n)
{
    // yours to write
}

"""The 3D convolution: nine tenths of the network's work, and all of this folder.

    y[n, o, z, y, x] = b[o] + sum_{c, i, j, m} w[o, c, i, j, m] x[n, c, z+i-p, y+j-p, x+m-p]

zero padded, stride 1, p = (k-1)/2. Read it in this order; each file computes the same numbers as
the one before, faster:

    conv3d.py        the equation as a forward/backward pair in numpy, and the layer Conv3D
    cpu.py           the pair that Conv3D runs on a CPU: few, deep matrix products
    naive.cu         CUDA: one thread per output, the equation as it stands
    tiled.cu         tiles in shared memory, 64 sums per thread in registers
    packed.py        how feature maps lie in memory for tensor cores, with a picture
    tensor_core.cuh  what a tensor core multiplies, and how a tile is laid out for it
    tensor.cu        products on tensor cores, in TF32 or bfloat16
    parts.cu         the last step of a weight gradient: adding up what the blocks have left
    gpu.py           which kernel runs where (`--precision`), and how naive.cu and tiled.cu start
    tensor.py        how tensor.cu and folded.cu start
    folded.py        upsampling, concatenation and convolution in one: 8 products instead of 27
    folded.cu        that on tensor cores

The tests hold every pair equal to the one of conv3d.py: cpu.py and folded.py in test_conv3d.py, all
kernels in test_kernels.py.
"""

# %% [markdown]
# # 6. A CUDA kernel, read line by line
#
# **Question.** A GPU runs tens of thousands of threads at once. What does ONE of them do, and how
# do all of them together make a convolution?
#
# **You will see** the package's simplest convolution kernel, one of its threads written in Python,
# and the kernel at work: on a GPU, or on the CPU in a small harness. The picture shows which thread
# writes which voxel.
#
# **Takes** about 5 seconds on 2 cores, the first time (it compiles). No GPU is needed; without
# one, a C++ compiler: g++, clang++, or `python -m pip install ziglang`. Lesson 2 explains the
# convolution.

# %%
import re

import lesson
import matplotlib.pyplot as plt
import numpy as np
from cuda_on_cpu import harness

from weakunet.gpu import backend
from weakunet.layers.conv.conv3d import conv3d_forward

# %% [markdown]
# ## The text
#
# Threads come in blocks, here of 256, and all of them run the same text. Each knows who it is:
# `blockIdx.x` is its block's number, `threadIdx.x` its own number in the block. Everything else is
# plain C. Above each kernel of weakunet a header says what it computes, which thread owns which
# output, what it reads and writes, how much it calculates, and why no two threads race.

# %%
text = (lesson.ROOT / "weakunet/layers/conv/naive.cu").read_text(encoding="utf-8")
kernel = re.search(r"// computes  the equation above.*?\n}\n", text, re.S).group()
print(kernel)

# %% [markdown]
# Line by line:
#
# * `extern "C" __global__ void`: started from the host, run on the GPU. `const real* __restrict__`
#   promises that x, w and b are only read and do not overlap y. `real` is float or double.
# * `t = blockIdx.x * blockDim.x + threadIdx.x`: the thread's number in the whole grid. It is 64
#   bits wide, because a large batch of maps can have more than 2^31 voxels.
# * `if (t >= total) return`: blocks are whole, so the last one may have too many threads.
# * The next lines take t apart. y (N, C_out, D, H, W) lies in memory with x fastest, so x is
#   `t % width`, y is `t / width % height`, and so on: thread t owns `y[t]`, and neighbouring
#   threads own neighbouring voxels.
# * Then the equation. `continue` leaves out what is outside the volume. That is the zero padding,
#   and it also keeps the thread from reading outside the array.
# * `y[t] = sum`: one thread, one output, one write. No other thread writes there: no race.
#
# ## One thread, in Python


# %%
def thread(t, x, w, b, y):
    """What thread t does; x (N, C_in, D, H, W), w (C_out, C_in, k, k, k); y is written at t."""
    n, o, zz, yy, xx = np.unravel_index(t, y.shape)  # the lines with % and /
    k, p, total = w.shape[-1], w.shape[-1] // 2, b[o]
    for c, i, j, m in np.ndindex(x.shape[1], k, k, k):
        z, y_, x_ = zz + i - p, yy + j - p, xx + m - p
        if 0 <= z < x.shape[2] and 0 <= y_ < x.shape[3] and 0 <= x_ < x.shape[4]:
            total += w[o, c, i, j, m] * x[n, c, z, y_, x_]
    y[n, o, zz, yy, xx] = total


rng = np.random.default_rng(6)
x, b = rng.standard_normal((1, 2, 3, 4, 5)), rng.standard_normal(2)
w = rng.standard_normal((2, 2, 3, 3, 3))
y = np.full((1, 2, 3, 4, 5), np.nan)  # a voxel that no thread writes would stay NaN
for t in rng.permutation(y.size):  # in any order: no thread waits for another
    thread(t, x, w, b, y)
by_hand = np.abs(y - conv3d_forward(x, w, b)).max()
print(f"{y.size} threads in Python, in a random order, against numpy: {by_hand:.1e}")
assert by_hand < 1e-12

# %% [markdown]
# ## The kernel at work
#
# `launch` takes the file, the kernel's name, the number of threads needed and the arguments in the
# kernel's order. It rounds up to whole blocks. For a GPU, CuPy compiles the text. For the CPU, an
# ordinary C++ compiler does, with a few lines added that say what `blockIdx` and `__global__` mean.

# %%
x = rng.standard_normal((1, 2, 6, 20, 30)).astype(np.float32)
w = rng.normal(0, 0.2, (3, 2, 3, 3, 3)).astype(np.float32)
b = rng.standard_normal(3).astype(np.float32)
y = np.full((1, 3, *x.shape[2:]), np.nan, np.float32)
sizes = (2, 3, 3, *x.shape[2:], y.size)  # c_in, c_out, k, depth, height, width, total


def run_kernel():
    """Run it where possible; returns y and where it ran, or None and why it could not run."""
    if backend.pick_device() == "cuda":
        arrays = [backend.to_device(a, "cuda") for a in (x, w, b, y)]
        backend.launch("layers/conv/naive", "conv3d_forward_naive", y.size, (*arrays, *sizes))
        return backend.to_host(arrays[-1]), backend.device_name("cuda")
    reason = harness.reason_not_to_run()
    if reason:
        return None, reason
    cpu = harness.CudaOnCpu(seed=1)
    cpu.launch("layers/conv/naive", "conv3d_forward_naive", y.size, (x, w, b, y, *sizes))
    return y, "the CPU, threads in an order that seed 1 shuffled"


reference = conv3d_forward(x, w, b)
result, where = run_kernel()
if result is None:
    print(f"the kernel could not be run here: {where}; the picture shows numpy's result instead")
    result = reference
else:
    print(f"ran on {where}")
blocks = backend.launch_sizes(y.size)[0][0]
print(f"{y.size} voxels: {blocks} blocks of 256, {blocks * 256 - y.size} threads of the last idle")
difference = np.abs(result - reference)
assert difference.max() < 1e-5

# %% [markdown]
# ## Why it is slow
#
# Every thread reads its 27 neighbours for itself, so a voxel in the middle is read by 27 threads
# for each output map. The caches serve most of these reads, but each is still an instruction.
# Lesson 7 reads a tile once and shares it within a block.

# %%
ones = np.ones((1, 1, *x.shape[2:]))
reads = conv3d_forward(ones, np.ones((1, 1, 3, 3, 3)), np.zeros(1))[0, 0]  # by symmetry
loads = 2 * 3 * 2 * reads.sum()  # x and w; for 3 output and 2 input maps
print(f"an output map reads a voxel {reads.min():.0f} (a corner) to {reads.max():.0f} times")

# %% [markdown]
# ## The picture
#
# Top left: the threads of slice z = 3 of map 0. A block's 256 threads own 256 consecutive voxels, 8
# and a half rows of this slice. Top right: how often each voxel is read. Below: the result, and its
# difference from numpy's. It is not 0, because the sums are in another order and float32 rounds.

# %%
z = 3
block, own_number = np.divmod(np.arange(y.size).reshape(y.shape), 256)
maps = {
    "the voxel's thread: its number in its block": (own_number[0, 0, z], "cividis"),
    "reads of the voxel, for one output map": (reads[z], "viridis"),
    "the kernel's result, map 0": (result[0, 0, z], "gray"),
    "|kernel - numpy|": (difference[0, 0, z], "magma"),
}
figure, panels = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
for panel, (name, (values, colours)) in zip(panels.flat, maps.items(), strict=True):
    shown = panel.imshow(values, cmap=colours)
    figure.colorbar(shown, ax=panel, shrink=0.85)
    panel.set(title=name, xlabel="x (voxels)", ylabel="y (voxels)")
for number in np.unique(block[0, 0, z]):
    row = np.argwhere(block[0, 0, z] == number)[:, 0].mean()
    panels[0, 0].text(14.5, row, f"block {number}", color="white", ha="center", fontsize=12)

print(f"{loads:.0f} loads from memory for {y.size} outputs, {loads / y.size:.0f} each")
print(f"largest difference between the kernel and numpy: {difference.max():.1e}")
lesson.save(figure, "06_cuda_kernel")

# %% [markdown]
# **Try.** In a copy of `naive.cu`, remove the guard `if (t >= total) return;` and run it with
# `harness.CudaOnCpu(sanitize="address")`: it names the line. Then do exercise set `06_cuda_kernel`.

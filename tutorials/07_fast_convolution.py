# %% [markdown]
# # 7. From the naive to the fast convolution
#
# **Question.** Every way of computing a convolution does the same multiplications. Why is one of
# them thousands of times as fast as another?
#
# **You will see** four convolutions in numpy, with their arithmetic and bytes counted and their
# time measured; then what two CUDA kernels do with memory, counted (no GPU is needed). The picture
# is a roofline: how fast a program can be, given how often it uses a byte.
#
# **Takes** about 5 seconds on 2 cores. Lessons 2 and 6 explain the convolution and the kernel.

# %%
import time

import lesson
import matplotlib.pyplot as plt
import numpy as np

from weakunet.bench import counts as bench_counts
from weakunet.figures.drawing import line_style
from weakunet.layers.conv import cpu as conv3d_fast
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.conv.conv3d import conv3d_forward
from weakunet.util.threads import set_threads

rng = np.random.default_rng(7)
set_threads(1)  # one core: the rungs shall differ in what they do, not in the number of cores

# %% [markdown]
# ## What must be done
#
# Each output number is a sum over C_in k^3 products, a multiplication and an addition each: 2 FLOP.
# At least x and w must be read and y written, 4 bytes per number (float32). The **intensity**, FLOP
# per byte, says how much work is done per byte that moves. For a convolution it can be high.


# %%
def count_work(c_in, c_out, shape, k=3):
    """(FLOP, least bytes) of a layer on a volume of `shape` (D, H, W)"""
    voxels = int(np.prod(shape))
    return 2 * c_in * k**3 * c_out * voxels, 4 * ((c_in + c_out) * voxels + c_in * c_out * k**3)


C_IN, C_OUT, SHAPE = 16, 16, (24, 48, 48)
flop, least = count_work(C_IN, C_OUT, SHAPE)
layer = bench_counts.Layer("conv3d", C_IN, C_OUT, (1, *SHAPE))
assert (flop, least) == bench_counts.cost(layer, "forward")
print(f"{C_IN} -> {C_OUT} maps of {SHAPE}: {flop / 1e6:.0f} million FLOP, {least / 1e6:.1f} MB,")
print(f"at best {flop / least:.0f} FLOP per byte")

# %% [markdown]
# ## The ladder
#
# **Loops**, like the kernel of lesson 6: for each output and each product, fetch an x and a w.
#
# **27 shifted products** (`conv3d_forward`, the package's reference): per tap, one matrix product
# of w's tap with the shifted x. Bytes: per tap numpy copies the shifted x (reads and writes C_in
# numbers per voxel), multiplies (reads C_in, writes C_out), and adds to y (reads 2 C_out, writes
# C_out). (The padding, the weights and the bias are small and left out.)
#
# **im2col**: put all that an output voxel sees into one column. Then the whole convolution is ONE
# matrix product, which computers do best. Bytes: 27 C_in numbers per voxel are read, written, and
# read again; C_out are written. The price is memory: 27 copies of x.


# %%
def by_loops(x, w):
    y = np.zeros((len(w), *x.shape[1:]), x.dtype)
    for o, z, j, i in np.ndindex(*y.shape):
        for c, a, b, m in np.ndindex(*w.shape[1:]):
            zz, jj, ii = z + a - 1, j + b - 1, i + m - 1
            if 0 <= zz < x.shape[1] and 0 <= jj < x.shape[2] and 0 <= ii < x.shape[3]:
                y[o, z, j, i] += w[o, c, a, b, m] * x[c, zz, jj, ii]
    return y


def by_im2col(x, w):
    (c_in, d, h, width), k = x.shape, w.shape[-1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    columns = np.empty((c_in, k, k, k, d, h, width), x.dtype)
    for a, b, m in np.ndindex(k, k, k):
        columns[:, a, b, m] = padded[:, a : a + d, b : b + h, m : m + width]
    return (w.reshape(len(w), -1) @ columns.reshape(c_in * k**3, -1)).reshape(-1, d, h, width)


# %% [markdown]
# **The package's layer** (`weakunet/layers/conv/cpu.py`) is between the two. It takes a block of
# voxels at a time, small enough to stay in the processor's cache. Of the 27 taps it copies only 3,
# those along y. A plane's neighbours along z are its neighbours in memory anyway, and the 3 taps
# along x come after the product, by adding its rows one voxel to the left and to the right. Bytes:
# 3 C_in numbers per voxel are read and written, then read by the product, which writes 3 C_out.
# Three additions (the bias and the two neighbours) read 5 C_out and write 3 C_out.

# %%
zero = np.zeros(C_OUT, np.float32)


def by_shifts(x, w):
    return conv3d_forward(x[None], w, zero[: len(w)])[0]


def by_the_package(x, w):
    return conv3d_fast.forward(x[None], w, zero[: len(w)])[0]


rungs = {  # name: the function, and the numbers it reads and writes per voxel, from C_in, C_out
    "loops": (by_loops, lambda c, o: 2 * 27 * c * o + o),
    "27 shifted products": (by_shifts, lambda c, o: 27 * (3 * c + 4 * o)),
    "im2col": (by_im2col, lambda c, o: 27 * 3 * c + o),
    "the package's layer": (by_the_package, lambda c, o: 3 * 3 * c + (3 + 5 + 3) * o),
}
x = rng.standard_normal((C_IN, *SHAPE), np.float32)
w = rng.normal(0, 0.05, (C_OUT, C_IN, 3, 3, 3)).astype(np.float32)
small = x[:4, :4, :6, :6], w[:4, :4]  # for the loops, which would take minutes
reference, small_reference = by_shifts(x, w), by_loops(*small)
for name, (convolve, _) in rungs.items():
    assert np.allclose(convolve(*small), small_reference, rtol=0, atol=1e-5)
    if name != "loops":
        assert np.allclose(convolve(x, w), reference, rtol=0, atol=1e-4)


# %% [markdown]
# ## Measured
#
# The best of several runs, and two limits of this computer, measured as well: the speed of a large
# matrix product, and the speed of copying memory.


# %%
def seconds(run, times=5):
    """The shortest of several runs: what else the computer does only makes them longer."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return min(took)


matrix, large = np.ones((1024, 1024), np.float32), np.ones(2**24, np.float32)
copy = np.empty_like(large)
peak = 2 * 1024**3 / seconds(lambda: matrix @ matrix)
bandwidth = 2 * large.nbytes / seconds(lambda: np.copyto(copy, large))
print(f"here: {peak / 1e9:.0f} GFLOP/s in matrix products, copies at {bandwidth / 1e9:.1f} GB/s")

points = {}  # FLOP per byte, FLOP/s
for name, (convolve, numbers_per_voxel) in rungs.items():
    own_x, own_w = small if name == "loops" else (x, w)
    c_in, c_out, shape = len(own_x), len(own_w), own_x.shape[1:]
    own_flop, _ = count_work(c_in, c_out, shape)
    moved = 4 * numbers_per_voxel(c_in, c_out) * np.prod(shape)
    took = seconds(lambda f=convolve, a=own_x, b=own_w: f(a, b), 1 if name == "loops" else 5)
    points[name] = own_flop / moved, own_flop / took
    print(
        f"{name:20s} {own_flop / 1e6:6.1f} MFLOP, {moved / 1e6:6.1f} MB,"
        f" {own_flop / moved:6.2f} FLOP per byte, {took:.3f} s: {own_flop / took / 1e9:.4f} GFLOP/s"
    )

# %% [markdown]
# The loops are slow for another reason: Python takes a long time for each product. The other three
# do their arithmetic in the same matrix product of the BLAS library, and differ in how they use
# memory around it.
#
# ## On a GPU: the naive kernel
#
# `naive.cu` (lesson 6): a thread per output, and for every product it loads an x and a w: 8 bytes
# for 2 FLOP. A GPU's memory is far too slow for that. Only its caches, which serve the neighbours'
# loads, save the kernel.
#
# ## The tiled kernel
#
# `tiled.cu` has two ideas. First: a block of threads copies ONCE what its tile of the output sees,
# the tile and a halo of one voxel around it, into memory that the block shares, and reads it from
# there. In numpy, tile by tile:

# %%
TILE = tuple(conv3d_cuda.SIZES[name] for name in ("TILE_Z", "TILE_Y", "TILE_X"))


def by_tiles(x, w):
    """y, and how often each voxel of the padded x is copied into a tile."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    y, loads = np.zeros((len(w), *x.shape[1:]), x.dtype), np.zeros(padded.shape[1:], int)
    for corner in np.ndindex(*(-(-n // t) for n, t in zip(x.shape[1:], TILE, strict=True))):
        first = np.multiply(corner, TILE)
        last = np.minimum(first + TILE, x.shape[1:])
        halo = tuple(slice(a, b + 2) for a, b in zip(first, last, strict=True))
        tile = padded[(slice(None), *halo)].copy()  # the block's shared memory
        loads[halo] += 1
        inside = by_shifts(tile, w)[:, 1:-1, 1:-1, 1:-1]
        y[(slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))] = inside
    return y, loads[1:-1, 1:-1, 1:-1]


y, tiled_loads = by_tiles(x, w)
assert np.allclose(y, reference, rtol=0, atol=1e-4)
ones = np.ones((1, 1, *SHAPE))
naive_loads = conv3d_forward(ones, np.ones((1, 1, 3, 3, 3)), np.zeros(1))[0, 0].astype(int)
halo, tile = np.prod(np.add(TILE, 2)), np.prod(TILE)
print(f"a tile of {TILE} voxels (z, y, x) and its halo: {halo} loads for {tile} voxels")
print(f"a voxel of x is loaded {tiled_loads.mean():.2f} times, for all of the block's output maps;")
print(f"by the naive kernel {naive_loads.mean():.1f} times, for EACH output map")

# %% [markdown]
# Second: shared memory is fast, but fetching two numbers from it for every product would still be
# too slow. So a thread works on a whole column of voxels along y and several output maps at once,
# and keeps all their sums in registers. For each input map and each of the 9 places (i, m) of the
# kernel in z and x, it reads the column, one voxel longer at either end, and the weights of the 3
# taps along y. Each number that it has read is used in many products.

# %%
column, maps = conv3d_cuda.SIZES["TILE_Y"], conv3d_cuda.SIZES["MAPS"]
products = 3 * maps * column
print(f"{column} voxels x {maps} maps: {column * maps} sums in registers; from shared memory")
print(f"{column + 2} + {3 * maps} numbers for {products} products, not {2 * products}")

# %% [markdown]
# Now count what goes through the GPU's main memory. A block has G groups of those maps; per tile it
# reads its halo and its weights for each input map, and writes its outputs.

# %%
groups = min(conv3d_cuda.SIZES["GROUPS"], -(-C_OUT // maps))
assert groups * maps >= C_OUT  # one block makes all output maps of its tile
per_tile = 4 * (C_IN * (halo + 27 * maps * groups) + C_OUT * tile)  # x and w in, y out
gpu = {"naive": 2 / 8, "tiled": count_work(C_IN, C_OUT, TILE)[0] / per_tile}

device_peak, _, device_bandwidth = bench_counts.DEVICES["h200"]
for name, intensity in gpu.items():
    ceiling = min(device_peak, intensity * device_bandwidth)
    print(
        f"{name}: {intensity:5.2f} FLOP per byte; on an H200, without caches, at most "
        f"{ceiling / 1e12:.1f} TFLOP/s: {1e6 * flop / ceiling:.0f} microseconds"
    )

# %% [markdown]
# These are ceilings, counted, with the arithmetic (float32, no tensor cores) and the memory speed
# of the manufacturer's data sheet. `python -m weakunet.bench` measures, where there is a GPU.
#
# ## The picture
#
# Left: how often each voxel of a slice of x is loaded. Right: the roofline. A program with few FLOP
# per byte is limited by the slanting roof, intensity x memory speed; one with many by the flat
# roof, the arithmetic. Filled marks are measured on this computer. A mark above the slanting roof
# gets its bytes from a cache, which is faster than memory. Open marks are counted ceilings on the
# GPU.

# %%
mosaic = [["naive", "roof", "roof"], ["tiled", "roof", "roof"]]
figure, panels = plt.subplot_mosaic(mosaic, figsize=(13.5, 7.5), layout="constrained")
z = TILE[0]  # the first slice of the second row of tiles
for name, loads in (("naive", naive_loads), ("tiled", tiled_loads)):
    shown = panels[name].imshow(loads[z], vmin=1, vmax=27, origin="lower")
    figure.colorbar(shown, ax=panels[name], shrink=0.9, label="loads")
    panels[name].set(title=f"{name}: loads of a voxel, slice z = {z}")
    panels[name].set(xlabel="x (voxels)", ylabel="y (voxels)")

roof = panels["roof"]
intensity = np.geomspace(0.1, 1000, 200)
for name, top, slope, style in (
    ("this computer, one core (measured)", peak, bandwidth, "-"),
    ("H200 (data sheet)", device_peak, device_bandwidth, "--"),
):
    roof.loglog(intensity, np.minimum(top, intensity * slope) / 1e9, "black", ls=style, label=name)
marks = {f"{name} (measured)": point for name, point in points.items()} | {
    f"CUDA, {name} (counted)": (own, min(device_peak, own * device_bandwidth))
    for name, own in gpu.items()
}
for k, (name, (own, speed)) in enumerate(marks.items()):
    fill = {} if "measured" in name else {"markerfacecolor": "white"}
    roof.plot(own, speed / 1e9, label=name, **line_style(k, linestyle="", markersize=12), **fill)
roof.axvline(flop / least, ymin=0.3, color="grey", linestyle=":")
roof.text(flop / least * 1.1, 3e2, "at best: each\nbyte moves once", color="dimgrey")
roof.set(title="roofline of one layer", xlabel="intensity (FLOP per byte)", ylabel="GFLOP/s")
roof.set_ylim(5e-5, 2e5)
roof.legend(frameon=False, loc="lower right")

fastest, slowest = points["the package's layer"][1], points["loops"][1]
print(f"from the loops to the package's layer: {fastest / slowest:.0f} times as fast,")
print(f"{fastest / peak:.0%} of this computer's matrix products on one core")
lesson.save(figure, "07_fast_convolution")

# %% [markdown]
# **Try.** Give the layer one input map, C_IN = 1, as the network's first layer has. What is its
# best intensity, and is it memory or arithmetic that limits it on the GPU? Then do exercise set
# `07_fast_convolution`.

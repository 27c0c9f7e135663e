"""How long the tensor kernels ought to take: written down before any GPU has timed them.

A block's work on one piece (8 input channels of its tile; a tile, in the weight gradient) was
counted in the kernels' text and in their SASS (sm_90, `nvdisasm -c`). Five things take time: the
mma, the passes through shared memory, issuing instructions, the traffic from the L2 and that from
memory. They overlap, so the largest is a lower limit; a guess of how well the two blocks on an SM
hide each other's waits, HIDDEN, makes a prediction of it. What a measurement proves wrong here is
worth knowing: `bench` on a GPU prints both.

A launch costs the host time, too, and the GPU can be no faster than the host queues work for it. In
a step at the paper's size that is hidden; the default's small step is predicted to wait for the
host most of the time, unless it is replayed as a CUDA graph (`bench --graph`): 0.5 ms then, we say.

Left out, because it would not pay: the 2x2x2 max pool in the convolution's epilogue. It would save
reading the maps once more, 290 MB in a step at the paper's size: 0.06 of 10.3 ms.
"""

import math
from typing import NamedTuple

from weakunet.layers.conv import tensor as conv3d_tensor

HIDDEN = 0.8
SIZES = conv3d_tensor.SIZES
# Kernels that a step starts in TF32, with CuPy's own (tests/test_step.py counts them), and the
# host's seconds for each: 11 us for our Python, measured on a Xeon core of a busy machine with the
# launch itself left out, and a guess of 6 us for CuPy's and the driver's part.
LAUNCHES = {"default": 88, "half-paper": 138, "paper": 138}
LAUNCH = 17e-6


class Gpu(NamedTuple):
    """Multiprocessors, their clock in Hz, cycles of a quarter of one per mma (16 x 8 x 8), bytes/s
    from the L2 and from memory. Data sheets; the L2's speed and Hopper's mma (62 % of what its own
    wgmma instruction reaches) are from published microbenchmarks."""

    sms: int
    clock: float
    mma_cycles: float
    l2: float
    memory: float


GPUS = {
    "h200": Gpu(132, 1.83e9, 4 / 0.62, 5.5e12, 4.8e12),
    "a100": Gpu(108, 1.41e9, 8, 4.5e12, 2.04e12),
}
# FLOP/s in TF32 without sparsity, from the data sheets: for a floor, not for the prediction
TF32 = {"h200": 495e12, "a100": 156e12}


class Piece(NamedTuple):
    """A block's work on one piece: mma and instructions of all its warps, passes of 128 bytes
    through shared memory, bytes from the L2 (whole sectors of 32)."""

    mma: int
    instructions: int
    passes: int
    l2: int


# Per warp and i: 144 mma, 206 instructions, 9 x 44 passes; 112 instructions fill 32 voxels.
FORWARD = Piece(
    mma=8 * 3 * 144,
    instructions=8 * 3 * (206 + 60) + 1080 * 112 // 32,
    passes=8 * 9 * 44 + 2 * 1080 // 8 + 27 * 1024 // 128,
    l2=6 * 10 * 4 * 32 * 8 + 27 * 1024,
)
# Per warp and column: 72 mma, 154 instructions, 68 passes; half of x is in the L1 already.
WEIGHT = Piece(
    mma=6 * 4 * 72,
    instructions=6 * (4 * 154 + 70) + 512 * 121 // 32 + 864 * 105 // 32,
    passes=6 * 4 * 68 + 2 * (512 + 864) // 8,
    l2=8 * 2 * 32 * 32 + 4 * 6 * 4 * 32 * 16 // 2,
)
# Of a convolution that reads an upsampled tensor, the part of that tensor (folded.cu).
# Per warp and a_z: 64 mma, 114 instructions, 86 passes; 102 instructions fill 32 voxels.
UP_FORWARD = Piece(
    mma=8 * 2 * 64,
    instructions=8 * (2 * 114 + 110) + 540 * 102 // 32,
    passes=8 * 172 + 2 * 540 // 8 + 32 * 512 // 128,
    l2=3 * 10 * 4 * 32 * 8 + 32 * 512,
)
# Per warp and a_z: 4 times 32 mma and 58 instructions, 136 passes; the parities in x share sectors.
UP_BACK = Piece(
    mma=8 * 2 * 4 * 32,
    instructions=8 * (2 * (4 * 58 + 75) + 60) + 2 * 459 * 110 // 32,
    passes=8 * 272 + 2 * 918 // 8 + 16 * 2048 // 128,
    l2=3 * 9 * 6 * 32 * 8 + 16 * 2048,
)
# Per warp and column: 64 mma, 166 instructions, 94 passes; half of x is in the L1 already.
UP_WEIGHT = Piece(
    mma=8 * 2 * 64,
    instructions=8 * (2 * 166 + 165) + 512 * 127 // 32 + 720 * 118 // 32,
    passes=8 * 2 * 94 + 2 * (512 + 720) // 8,
    l2=4 * 4 * 32 * 32 + 2 * 5 * 4 * 32 * 32 // 2,
)


def _more(piece, instructions, l2):
    return piece._replace(instructions=piece.instructions + instructions, l2=piece.l2 + l2)


# With pairs of bfloat16 (tensor_bf16.cu): a piece has twice the channels, in the weights' gradients
# twice the planes, in as many mma and passes. Arrays are float32: twice the bytes of x and dy, and
# 44, 43 and 38, 21, 42, 46 and 35 instructions more fill 32 voxels. Of the tile before, no x is
# thought to be in the L1 any more.
BF16 = {
    FORWARD: _more(FORWARD, 1080 * 44 // 32, 6 * 10 * 4 * 32 * 8),
    WEIGHT: _more(WEIGHT, (512 * 43 + 864 * 38) // 32, 8 * 2 * 32 * 32 + (6 - 2) * 6 * 4 * 32 * 16),
    UP_FORWARD: _more(UP_FORWARD, 540 * 21 // 32, 3 * 10 * 4 * 32 * 8),
    UP_BACK: _more(UP_BACK, 2 * 459 * 42 // 32, 3 * 9 * 6 * 32 * 8),
    UP_WEIGHT: _more(
        UP_WEIGHT, (512 * 46 + 720 * 35) // 32, 4 * 4 * 32 * 32 + (3 - 1) * 5 * 4 * 32 * 32
    ),
}


def bf16_seconds(layer, direction, gpu):
    """As tf32_seconds, with factors in bfloat16."""
    return tf32_seconds(layer, direction, gpu, pair=2)


def tf32_seconds(layer, direction, gpu, pair=1):
    """Predicted seconds of a 3x3x3 convolution (bench_counts.Layer) in one direction, on one of
    GPUS, or None where it does not run on tensor cores. backward: to the input, weights and bias.
    A ReLU's forward is computed by the convolution before it. pair: 2 with pairs of bfloat16.
    """
    if gpu in GPUS and (layer.kind, direction) == ("relu", "forward"):
        return 0.0
    channels = [layer.c_in, *[layer.c_coarse] * (layer.kind == "upconv3d")]
    if layer.kind not in ("conv3d", "upconv3d") or min(channels) < SIZES["CHANNELS"]:
        return None
    if gpu not in GPUS:
        return None
    if layer.kind == "upconv3d":
        coarse = _up_forward if direction == "forward" else _up_backward
        skip = tf32_seconds(layer._replace(kind="conv3d", c_coarse=0), direction, gpu, pair)
        return skip + coarse(layer, GPUS[gpu], pair) / HIDDEN
    n, c_in, c_out, gpu = layer.volume[0], layer.c_in, layer.c_out, GPUS[gpu]
    if direction == "forward":
        return _convolution(layer.volume, c_in, c_out, gpu, pair) / HIDDEN
    maps = 4 * math.prod(layer.volume)  # bytes of one channel
    groups = _ceil(c_in, 8 * SIZES["DW_GROUPS"]), _ceil(c_out, SIZES["DW_MAPS"])
    tiles = n * _tiles(layer.volume, "DW", pair)
    parts = max(1, min(tiles, conv3d_tensor.BLOCKS // math.prod(groups)))
    pieces = _ceil(tiles, parts)
    traffic = maps * (c_out * groups[0] + c_in * groups[1])
    weights = _seconds(WEIGHT, parts * math.prod(groups), pieces, traffic, gpu, pair)
    adding_up = 2 * 4 * parts * 27 * c_in * c_out / gpu.memory
    bias = maps * c_out / gpu.memory
    back = _convolution(layer.volume, c_out, c_in, gpu, pair)
    return (back + weights + adding_up + bias) / HIDDEN


def _convolution(volume, c_in, c_out, gpu, pair):
    groups, pieces = _ceil(c_out, SIZES["MAPS"]), _ceil(c_in, SIZES["CHANNELS"] * pair)
    traffic = 4 * math.prod(volume) * (c_in * groups + c_out)
    blocks = volume[0] * _tiles(volume, "TILE") * groups
    return _seconds(FORWARD, blocks, pieces, traffic, gpu, pair)


def _up_forward(layer, gpu, pair):
    """What the upsampled channels add to y, which is read and written."""
    volume, groups = _half(layer.volume), 2 * _ceil(layer.c_out, SIZES["UP_MAPS"])
    blocks = volume[0] * _tiles(volume, "UP") * groups
    traffic = 4 * math.prod(volume) * (layer.c_coarse * groups + 2 * 8 * layer.c_out)
    pieces = _ceil(layer.c_coarse, SIZES["CHANNELS"] * pair)
    return _seconds(UP_FORWARD, blocks, pieces, traffic, gpu, pair)


def _up_backward(layer, gpu, pair):
    volume, c_coarse, c_out = _half(layer.volume), layer.c_coarse, layer.c_out
    maps = 4 * math.prod(volume)  # bytes of one coarse channel; one of dy has 8 times as many
    groups = _ceil(c_coarse, SIZES["UP_BACK_MAPS"])
    pieces = 4 * _ceil(c_out, SIZES["CHANNELS"] * pair)
    blocks, traffic = volume[0] * _tiles(volume, "UP") * groups, 8 * c_out * groups + c_coarse
    back = _seconds(UP_BACK, blocks, pieces, maps * traffic, gpu, pair)
    shape = volume[0], c_coarse, *volume[1:]
    parts, *groups = conv3d_tensor.folded_weight_grid(shape, c_out, pair)
    pieces = _ceil(volume[0] * _tiles(volume, "UP_DW", pair), parts)
    traffic = maps * (8 * c_out * groups[0] + 4 * c_coarse * groups[1])
    weights = _seconds(UP_WEIGHT, 4 * parts * math.prod(groups), pieces, traffic, gpu, pair)
    adding_up = 2 * 4 * parts * 64 * c_coarse * c_out / gpu.memory
    return back + weights + adding_up


def _half(volume):
    return volume[0], *(size // 2 for size in volume[1:])


def _seconds(piece, blocks, pieces, traffic, gpu, pair):
    """The largest of the five times, for blocks that each work on so many pieces."""
    piece = BF16[piece] if pair == 2 else piece
    rounds = _ceil(blocks, 2 * gpu.sms) * 2 * pieces  # pieces that the busiest SM works on
    cycles = max(piece.mma / 4 * gpu.mma_cycles, piece.instructions / 4, piece.passes)
    from_l2 = blocks * pieces * piece.l2 / gpu.l2
    return max(rounds * cycles / gpu.clock, from_l2, traffic / gpu.memory)


def _tiles(volume, name, pair=1):
    return conv3d_tensor.tiles_of(volume[1:], name, pair)


def _ceil(size, part):
    return -(-size // part)

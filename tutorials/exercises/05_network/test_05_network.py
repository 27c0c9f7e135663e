"""Grades exercise 5; the oracle for the parameters is the package's network itself."""

import numpy as np
from grading import Stopped, compare, fail

from weakunet.model import WeakUNet

ENCODER = [(3, 1), (2, 2), (3, 1), (2, 2), (3, 1)]


def _probe(layers):
    """The receptive field, tried out: which of 64 inputs reach one output?"""
    reached = [{i} for i in range(64)]
    for k, stride in layers:
        starts = range(0, len(reached) - k + 1, stride)
        reached = [set().union(*reached[i : i + k]) for i in starts]
    return len(reached[len(reached) // 2])


def test_receptive_field(answer):
    for layers in (ENCODER, [(3, 1)] * 3, [(2, 2), (2, 2), (5, 1)]):
        pools = [stride for _, stride in layers]
        jumps = np.cumprod([1, *pools])
        ks = np.array([k for k, _ in layers])
        wrong = [
            (1 + (ks - 1).sum(), "the jump is missing: after a pooling, neighbours lie 2 apart"),
            (1 + (ks - 1) @ jumps[1:], "the jump grows too early: first the field, then the jump"),
            (1 + ks @ jumps[:-1], "a layer adds (k - 1) jumps, not k: one voxel was there before"),
            (np.prod(ks), "the sizes are multiplied: convolutions in a row ADD (k - 1) jumps"),
            ((ks - 1) @ jumps[:-1], "it starts at one voxel, not at 0"),
            (1 + (ks - 1) @ np.cumsum([1, *pools])[:-1], "the jump is multiplied by the stride"),
            (1 + (ks - 1) @ [1, *pools[:-1]], "the jump is that of one layer: multiply them all"),
            (1 + ks // 2 @ jumps[:-1], "k // 2 on both sides are k - 1 neighbours more"),
            (jumps[-1], "this is the jump, not the field"),
        ]
        right = _probe(layers)
        wrong = [w for w in wrong if w[0] != right]
        compare(f"receptive_field({layers})", answer.receptive_field(layers), right, wrong)


def test_map_shapes(answer):
    right = [(8, 84, 128, 168), (16, 42, 64, 84), (32, 21, 32, 42)]
    mistakes = [
        ([(c, d // 2, h // 2, w // 2) for c, d, h, w in right], "the first level is not halved"),
        ([right[0], (16, 84, 64, 84), (32, 84, 32, 42)], "D is not halved: pooling is 2x2x2"),
        ([right[0], (16, 42, 64, 84), (32, 42, 64, 84)], "each level is half of the level above"),
        ([right[0], right[1], (32, 10, 16, 21)], "each level is half of the level above, once"),
        ([(*s, c) for c, *s in right], "the maps come first: (C, D, H, W)"),
        ([s for _, *s in right], "C is missing: (C, D, H, W)"),
        (right[::-1], "the levels go from the scan down"),
    ]
    shapes = answer.map_shapes((8, 16, 32), (84, 128, 168))
    compare("map_shapes", shapes, right, mistakes)
    answer.map_shapes((8, 16, 32), (84, 128, 4))  # 21 is odd, but nobody halves it
    try:
        answer.map_shapes((4, 8, 16, 32), (84, 128, 168))
    except Stopped as stopped:
        if stopped.name != "ValueError":
            raise
        return
    fail("21 voxels were halved: two poolings fit into the paper's 84 slices, the third must raise")


def test_n_parameters(answer):
    for channels in ((8, 16, 32), (4, 6), (32, 64, 128)):
        network = WeakUNet(channels, rng=np.random.default_rng(0))
        right = sum(array.size for array in network.params.values())
        maps, below = np.array(channels[:-1]), np.array(channels[1:])
        biases = sum(channels) + maps.sum() + 1
        decoder = 27 * (maps + below) @ maps
        mistakes = [
            (right - biases, "the biases are missing: one per output channel and the last layer's"),
            (right - 27 * maps @ maps, "the skip is missing: the decoder reads it as well"),
            (right - 27 * below @ maps, "the decoder reads only the skip: add the maps below"),
            (right - decoder - maps.sum(), "the decoder is missing"),
            (right - channels[0] - 1, "the last layer is missing: a weight per map and one bias"),
            (right - 1, "the last layer's bias is missing"),
            (right - sum(channels), "the encoder's biases are missing: one per output channel"),
            (right - channels[0] + channels[-1], "the last layer reads the FIRST level's maps"),
            (right - 27 * (maps - 1) @ below, "every convolution of the encoder reads one map"),
        ]
        compare(f"n_parameters({channels})", answer.n_parameters(channels), right, mistakes)

"""Grades exercise 4; the forward oracle is skimage's block_reduce."""

import numpy as np
from grading import compare
from skimage.measure import block_reduce

RNG = np.random.default_rng(4)
BLOCK = (2, 2, 2)


def _up(y):
    """Each voxel eight times."""
    return np.kron(y, np.ones(BLOCK))


def test_maxpool_forward(answer):
    x = RNG.normal(size=(4, 6, 2)) - 5  # all negative: a maximum with 0 would show
    right = block_reduce(x, BLOCK, np.max)
    mistakes = [
        (block_reduce(x, BLOCK, np.mean), "this is the mean of each block, not its maximum"),
        (x[::2, ::2, ::2], "this is the first voxel of each block, not its maximum"),
        (np.zeros(right.shape), "the maximum starts at 0: a block may be negative everywhere"),
        (block_reduce(abs(x), BLOCK, np.max), "the largest magnitude is taken, not the maximum"),
        (block_reduce(x, BLOCK, np.min), "this is the smallest of each block"),
        (block_reduce(x, BLOCK, np.sum), "this is the sum of each block"),
        (np.full(right.shape, x.max()), "one maximum for the whole volume: each block has its own"),
        (x.reshape(2, 2, 2, 3, 2, 1).max((0, 2, 4)), "these eight voxels are not neighbours"),
    ]
    compare("maxpool_forward", answer.maxpool_forward(x), right, mistakes)


def test_maxpool_backward(answer):
    x = RNG.normal(size=(4, 4, 6)).round(1)
    x[:2, :2, :2] = 0  # as in an image's background: all eight tie
    x[2:, 2:, 4:] = -1
    x[3, 2, 4] = x[2, 3, 5] = 2  # two tie; z counts first
    dy = RNG.normal(size=(2, 2, 3))
    tied = x == _up(block_reduce(x, BLOCK, np.max))
    smallest = _keep(x == _up(block_reduce(x, BLOCK, np.min)), 0)
    first, last = _keep(tied, 0), _keep(tied, -1)
    by_x = _keep(tied.transpose(2, 1, 0), 0).transpose(2, 1, 0)
    shared = tied / _up(block_reduce(tied.astype(float), BLOCK, np.sum))
    mistakes = [
        (_up(dy) * last, "the tie went to the last maximum: the first in memory order must win"),
        (_up(dy) * tied, "every voxel that ties got all of dy: together they send back too much"),
        (_up(dy) * shared, "the tie is shared equally: the first in memory order gets all of it"),
        (_up(dy) * by_x, "the tie went to the first along x: memory order is z, then y, then x"),
        (_up(dy), "all eight voxels got dy: only the maximum moved the output"),
        (_up(dy) * smallest, "the smallest voxel of each block got dy"),
        (first, "dy is missing: the chain rule multiplies the 1 with it"),
        (_up(dy) / 8, "dy is spread over the block, as for a mean: the maximum gets all of it"),
    ]
    compare("maxpool_backward", answer.maxpool_backward(dy, x), _up(dy) * first, mistakes)


def _keep(tied, which):
    """Of the True voxels of each block only one: the first (0) or the last (-1) in memory."""
    kept = np.zeros(tied.shape)
    for z, y, x in np.ndindex(*(size // 2 for size in tied.shape)):
        block = tied[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        a, b, c = np.argwhere(block)[which]
        kept[2 * z + a, 2 * y + b, 2 * x + c] = 1
    return kept


def test_upsample_backward(answer):
    dy = RNG.normal(size=(4, 6, 2))
    right = block_reduce(dy, BLOCK, np.sum)
    mistakes = [
        (right / 8, "this is the mean of the eight copies' gradients: they must be added up"),
        (dy[::2, ::2, ::2], "only one of the eight copies sends its gradient back: add all eight"),
        (block_reduce(dy, BLOCK, np.max), "this is the largest of the eight: add them up"),
        (dy[1::2, 1::2, 1::2], "only one of the eight copies sends its gradient back: add all"),
        (dy.reshape(2, 2, 2, 3, 2, 1).sum((0, 2, 4)), "the copies of a voxel are neighbours"),
        (_up(dy), "this is the forward pass once more: backward makes the volume smaller"),
        (block_reduce(dy[::2], (1, 2, 2), np.sum), "half of the copies are left out: add all 8"),
        (block_reduce(abs(dy), BLOCK, np.sum), "the gradients' signs are lost"),
    ]
    compare("upsample_backward", answer.upsample_backward(dy), right, mistakes)

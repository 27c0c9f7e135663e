"""Grades exercise 15; the oracle of the parts' gradient is the whole batch's, by the package."""

import numpy as np
from grading import compare, parts

from weakunet.layers.linear import linear_backward
from weakunet.layers.loss import mse_backward


def test_combine(answer):
    rng = np.random.default_rng(15)
    x, w, b, t = rng.normal(size=(7, 5)), rng.normal(size=5), rng.normal(size=1), rng.normal(size=7)

    def gradient(part):
        return linear_backward(mse_backward(x[part] @ w + b, t[part]), x[part], w)[1]

    scans = np.array([4, 0, 2, 1])
    ends = [slice(0, 4), slice(4, 4), slice(4, 6), slice(6, 7)]
    rows = np.stack([gradient(p) if p.start < p.stop else np.full(5, np.inf) for p in ends])
    busy = rows[scans > 0]
    mistakes = [
        (np.full(5, np.nan), "a rank without scans has spoilt the sum: leave its row out"),
        (busy.mean(axis=0), "the plain mean of the ranks: a rank of 4 scans counts as one of 1"),
        (busy.sum(axis=0), "the rows are added up: each is a MEAN over its own scans"),
        (scans[scans > 0] @ busy, "the sum over all scans: the loss is their mean, divide by 7"),
        (scans[scans > 0] / 4 @ busy, "divided by the number of ranks: divide by the scans'"),
    ]
    right = gradient(slice(0, 7))
    mistakes += [
        (right / 3, "the weighted rows are averaged once more: the gradient is their SUM"),
        ((scans[scans > 0] / 7) * busy.T, "a column for each rank: add the weighted rows up"),
    ]
    compare("combine", answer.combine(rows, scans), right, mistakes)


def _in_the_ring(arrays):
    """The totals (n,): the sum of chunk c begins at rank c."""
    ranks, n = arrays.shape
    total = []
    for c in range(ranks):
        chunk = arrays[:, c * n // ranks : (c + 1) * n // ranks]
        order = [chunk[(c + i) % ranks] for i in range(ranks)]
        total.append(sum(order[1:], order[0]))
    return np.concatenate(total)


def test_ring_sum(answer):
    for ranks, n in ((4, 12), (3, 6), (2, 10), (1, 5)):
        arrays = np.random.default_rng(ranks).normal(size=(ranks, n))
        totals, received = parts("ring_sum", answer.ring_sum(arrays), "totals, received")
        right = np.tile(_in_the_ring(arrays), (ranks, 1))
        half = arrays.reshape(ranks, ranks, n // ranks).copy()
        for r in range(ranks):  # what every rank holds after the first half
            for back in range(ranks):
                c = (r - back) % ranks
                half[r, c] = sum(arrays.reshape(half.shape)[(c + i) % ranks, c]
                                 for i in range(back + 1))  # fmt: skip
        mistakes = [
            (half.reshape(ranks, n), "only the first half: the totals must go around"),
            (right[0], "this is one row: every rank has one, and totals holds them all"),
        ] if ranks > 2 else []  # fmt: skip
        compare(f"the totals of {ranks} ranks", totals, right, mistakes)
        one = n // ranks
        mistakes = [
            ([(ranks - 1) * n] * ranks, "every rank has received everybody's whole row: a ring "
             "passes on one chunk per round"),
            ([(ranks - 1) * one] * ranks, "this is half of it: there are 2 (P - 1) rounds"),
            ([2 * (ranks - 1)] * ranks, "these are rounds: count the NUMBERS, n/P in each"),
            ([2 * ranks * one] * ranks, "P rounds are one too many in each half"),
            (2 * (ranks - 1) * n, "this is what all ranks together receive: a list, one for each"),
        ] if ranks == 4 else []  # fmt: skip
        compare(f"received by {ranks} ranks", received, [2 * (ranks - 1) * one] * ranks, mistakes)
    arrays = np.array([[5.0, 1.0, 1e16], [1.0, 1e16, -1e16], [1.0, -1e16, 1.0]])
    totals = answer.ring_sum(arrays)[0]
    by_rank = arrays[0] + arrays[1] + arrays[2]
    mistakes = [(np.tile(by_rank, (3, 1)), "this is the sum in the order of the ranks: in a ring, "
                 "that of chunk c begins at rank c, and is rounded otherwise")]  # fmt: skip
    compare("totals that depend on the order", totals, np.tile(_in_the_ring(arrays), (3, 1)),
            mistakes)  # fmt: skip


def test_best_ranks(answer):
    cases = [
        ((1.0, 0.01, 64), 10, [(9, "one rank fewer than the best: ranks count from 1"),
                               (64, "more is not always better: a rank receives P - 1 gradients"),
                               (1, "is computing not divided by the number of ranks?")]),
        ((1.0, 0.01, 4), 4, [(10, "there are at most 4 ranks"),
                             (3, "all 4 ranks may be used: 1 ... most")]),
        ((1.0, 0.0, 8), 8, [(1, "sending is free here: the most ranks are the best")]),
        ((0.001, 1.0, 8), 1, [(8, "sending takes a second: one rank, which sends nothing")]),
        ((6.0, 1.0, 8), 2, [(3, "2 and 3 ranks take 4 seconds each: the smaller number of a tie")]),
    ]  # fmt: skip
    for arguments, right, mistakes in cases:
        compare(f"best_ranks{arguments}", answer.best_ranks(*arguments), right, mistakes)

import numpy as np


def combine(gradients, scans):
    busy = scans > 0
    return (scans[busy] / scans.sum()) @ gradients[busy]


def ring_sum(arrays):
    ranks, n = arrays.shape
    chunks = arrays.reshape(ranks, ranks, n // ranks).copy()  # (P, n) -> (rank, chunk, n/P)
    received = [0] * ranks
    for adding in (True, False):
        for k in range(ranks - 1):
            numbers = [(r - k if adding else r + 1 - k) % ranks for r in range(ranks)]
            sent = [chunks[r, c].copy() for r, c in enumerate(numbers)]
            for r, (c, chunk) in enumerate(zip(numbers, sent, strict=True)):
                to = (r + 1) % ranks
                chunks[to, c] = chunks[to, c] + chunk if adding else chunk
                received[to] += chunk.size
    return chunks.reshape(ranks, n), received


def best_ranks(compute, send, most):
    ranks = np.arange(1, most + 1)
    return int(ranks[np.argmin(compute / ranks + (ranks - 1) * send)])

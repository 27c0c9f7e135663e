"""Exercise 15: gradients of parts, a sum in a ring, and how many ranks. About 40 minutes.

No MPI is needed: all ranks are rows of one array.
"""

import numpy as np  # noqa: F401


def combine(gradients, scans):
    """The gradient (n,) of the mean loss over the whole batch.

    gradients (P, n): row r is the gradient of the mean loss over rank r's own scans; scans (P,):
    how many they are. The row of a rank without scans may hold anything, infinity too.
    """
    raise NotImplementedError("combine is yours to write")


def ring_sum(arrays):
    """Sum over the ranks in a ring: returns totals (P, n) and received, a list of P numbers.

    arrays (P, n), which must not be changed: row r is what rank r begins with. P divides n:
    every row is P chunks of n/P numbers. In every round each rank r sends one chunk to rank
    r + 1 (the last one to rank 0), all at the same time.
    Rounds k = 0 ... P-2: rank r sends its chunk (r - k) % P, and the receiver ADDS what it gets to
    its own chunk of the same number. After them, rank r holds the total of chunk (r + 1) % P.
    Rounds k = 0 ... P-2 again: rank r sends its chunk (r + 1 - k) % P, which is a total, and the
    receiver replaces its own chunk with it. After them, every row is the total.
    received: how many numbers each rank has received.
    """
    raise NotImplementedError("ring_sum is yours to write")


def best_ranks(compute, send, most):
    """The number of ranks, 1 ... most, with which a step is shortest; the smaller of a tie.

    compute: seconds that one rank takes for the whole batch, which can be cut into any parts.
    send: seconds in which a rank receives one gradient; it receives those of ALL OTHER ranks.
    """
    raise NotImplementedError("best_ranks is yours to write")

"""Splitting numpy work over threads, with the same bits whatever their number.

numpy releases the interpreter's lock while it copies and multiplies, so plain Python threads run
side by side. The matrix products inside must then not start threads of their own: while our work
runs, the BLAS library is limited to one thread. Afterwards it has its threads back.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np  # noqa: F401  so that its BLAS is loaded when the controller looks for it
from threadpoolctl import ThreadpoolController

_blas = ThreadpoolController()  # looked up once: entering a limit then takes 7 us, not 110
one_blas_thread = _blas.wrap(limits=1, user_api="blas")  # a decorator
_pool = None
_threads = 1


def cores():
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count=None):
    """Use `count` threads from now on (default: the cores this process may run on)."""
    global _pool, _threads
    if _pool is not None:
        _pool.shutdown()
    _threads = count or cores()
    _pool = ThreadPoolExecutor(_threads - 1) if _threads > 1 else None


@one_blas_thread
def split_over_threads(work, items):
    """[work(item) for item in items], split over the threads; the caller is one of them.

    Which thread runs which item varies. For bit-identical results, split the work by sizes only and
    sum the results in item order.
    """
    results, todo = [None] * len(items), iter(range(len(items)))  # next() is atomic

    def worker():
        for i in todo:
            results[i] = work(items[i])

    helpers = [_pool.submit(worker) for _ in range(min(_threads, len(items)) - 1)]
    worker()
    for helper in helpers:
        helper.result()
    return results


set_threads()

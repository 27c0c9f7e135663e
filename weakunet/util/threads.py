"""Sharing numpy work out over threads, with the same bits whatever their number.

numpy lets go of the interpreter's lock while it copies and multiplies, so plain Python threads run
side by side. The matrix products inside must then not start threads of their own: importing this
file sets the BLAS library to one thread for the whole process.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

_pool = None
_threads = 1


def set_threads(count=None):
    """Use `count` threads from now on (default: the cores this process may run on)."""
    global _pool, _threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if _pool is not None:
        _pool.shutdown()
    _threads = count or cores or 1
    _pool = ThreadPoolExecutor(_threads - 1) if _threads > 1 else None


def get_threads():
    """How many threads are used."""
    return _threads


def share_out(work, items):
    """[work(item) for item in items], shared out over the threads; the caller is one of them.

    Who does what depends on the moment; for results that do not, cut the items by sizes alone and
    add up what comes back in its order.
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


threadpool_limits(1, user_api="blas")
set_threads()

"""Work on many scans in several processes, with the results in order.

Each process takes one scan at a time, so memory does not grow with the cohort. The processes split
the cores: with one per core, numpy's matrix products and our layers use one thread in each.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading

from weakunet.util.cli import InputError, one_line
from weakunet.util.threads import cores, set_threads


def map_processes(function, items, n_jobs):
    """Yield function(item) for every item, in order, from `n_jobs` processes; 1: this one.

    `function` must be defined at the top of a module, and items and results must pickle. An error
    that it raises ends the work. Raises InputError when a process was killed.
    """
    with processes(min(n_jobs, len(items))) as each:
        yield from each(function, items)


@contextlib.contextmanager
def processes(n_jobs):
    """Yield a `map` whose calls all use the same `n_jobs` processes."""
    if n_jobs <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks
    threads = max(1, cores() // n_jobs)
    try:
        pool = concurrent.futures.ProcessPoolExecutor(n_jobs, context, _start_worker, (threads,))
    except (OSError, ImportError, NotImplementedError) as error:  # a container without /dev/shm
        raise InputError(
            f"worker processes cannot be started here ({one_line(error)}); run with --jobs 1"
        ) from None

    def each(function, items):
        try:
            yield from pool.map(function, items)
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for lack of memory; "
                "run again with --jobs 1"
            ) from None

    try:
        yield each
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads):
    """Leave Ctrl-C to the main process, so that scans in hand are finished; do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    import numpy  # noqa: F401  its BLAS must be loaded before it can be limited
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")
    set_threads(threads)

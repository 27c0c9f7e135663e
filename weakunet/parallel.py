"""Work on many scans in several processes; results come in order, however many there are."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading

from weakunet.cli import InputError


def map_processes(function, items, n_jobs):
    """Yield function(item) for every item, in order, from `n_jobs` processes; 1: from this one.

    `function` is a module's; items and results can be pickled. An error that it raises ends the
    work. Raises InputError when a process was killed.
    """
    n_jobs = min(n_jobs, len(items))
    if n_jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks
    pool = concurrent.futures.ProcessPoolExecutor(n_jobs, context, initializer=_start_worker)
    try:
        yield from pool.map(function, items)
    except concurrent.futures.process.BrokenProcessPool:
        raise InputError(
            "a worker process was killed, most likely for lack of memory; run again with --jobs 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker():
    """Leave Ctrl-C to the main process (scans in hand are finished), and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()

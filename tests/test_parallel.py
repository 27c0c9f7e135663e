"""Many scans in several processes: the order of results, and processes that fail."""

import errno
import multiprocessing.synchronize
import os

import pytest

from weakunet.util.cli import InputError
from weakunet.util.processes import map_processes


@pytest.mark.parametrize("n_jobs", [0, 1, 2, 9])
def test_results_come_in_order_whatever_the_number_of_processes(n_jobs):
    assert list(map_processes(abs, [-3, 1, -2], n_jobs)) == [3, 1, 2]
    assert list(map_processes(abs, [], n_jobs)) == []


def test_killed_process_is_reported_with_the_remedy():
    with pytest.raises(InputError, match="killed.*--jobs 1"):
        list(map_processes(os._exit, [1, 1, 1], 2))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOENT, errno.EACCES])
def test_container_without_shared_memory_is_told_to_use_one_process(monkeypatch, number):
    def lock(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", lock)
    with pytest.raises(InputError, match="cannot be started.*--jobs 1"):
        list(map_processes(abs, [1, 2], 2))

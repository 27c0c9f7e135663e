"""Damaged files for every reader: each is read, or refused in one line that names the file.

    python tests/fuzz.py [--seed 0] [--cases 500] [--only READER] [--case N] [--without CHECK]

Every case is drawn from its own seed, so --case repeats one. Prints one JSON object; what it calls
a problem: an error other than InputError, a message of several lines, one too long or without the
file's name, a warning, more than SECONDS, more than MEMORY above the start, a value that is none.
The address space is limited, so that a bomb ends the process and not the machine.
"""

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from damage import checkpoints, images, tables  # noqa: E402

from weakunet.data import cohort, volumes  # noqa: E402
from weakunet.evaluation import predictions  # noqa: E402
from weakunet.training import checkpoint  # noqa: E402
from weakunet.util.cli import InputError  # noqa: E402

SECONDS = 5  # of CPU: the machine may be busy with other things
MAX_VOXELS = 2**22  # instead of the reader's own limit: bombs as large as it are read
MEMORY = volumes.MEMORY_PER_VOXEL * MAX_VOXELS + 2**26  # bytes; the rest is for whatever else
LONGEST = 600  # characters of a message, without the path


def read_volume(path):
    volume = volumes.read_volume(path)
    array = volume.array
    assert array.ndim == 3 and array.dtype == np.float32 and array.flags.c_contiguous
    assert array.size <= MAX_VOXELS and np.isfinite(array).all()
    assert np.isfinite(volume.affine).all() and abs(np.linalg.det(volume.affine)) > 0
    assert min(volume.spacing_mm) > 0 and volume.voxel_mm3 > 0


def read_cohort(path):
    scans = cohort.read_cohort(path)
    assert scans and len({scan.subject for scan in scans}) == len(scans)
    for scan in scans:
        assert scan.subject.isprintable() and not set(scan.subject) & set("/\\")
        assert scan.count is None or (isinstance(scan.count, int) and scan.count >= 0)
        assert scan.split in (None, "train", "val", "test")


def read_centres(path):
    points = cohort.read_centres(path)
    assert points.ndim == 2 and points.shape[1] == 3 and np.isfinite(points).all()


def read_predictions(path):
    counts = predictions.read_predictions(path)
    assert counts and all(isinstance(subject, str) and subject for subject in counts)
    assert np.isfinite(list(counts.values())).all()


def read_checkpoint(path):
    model, training = checkpoint.load_checkpoint(path)
    assert all(np.isfinite(value).all() for value in model.params.values())
    assert len(model.shape) == 3 and min(model.shape) >= 1
    model.predict(np.zeros((1, 1, *[model.multiple] * 3), np.float32))
    assert all(isinstance(value, np.ndarray) for value in training.values())


def resume(path):
    """Take up training from a last.npz, which is read as a checkpoint first."""
    folder = path.with_suffix("")
    folder.mkdir()
    try:
        path.rename(folder / "last.npz")
        run = checkpoints.training_run(folder)
        run.load()
        assert len(run.history) == run.epoch and run.predicted.ndim == 1
        run.best_epoch()
        run.optimizer.step({name: value * 0 for name, value in run.model.params.items()})
    finally:
        (folder / "last.npz").rename(path)
        folder.rmdir()


READERS = {
    "volume": (read_volume, images.damaged),
    "cohort": (read_cohort, tables.cohort),
    "centres": (read_centres, tables.centres),
    "predictions": (read_predictions, tables.predictions),
    "checkpoint": (read_checkpoint, checkpoints.damaged),
    "resume": (resume, checkpoints.damaged),
}
CHECKS = {  # what --without takes away: then the fuzzer must find something
    "affine": (volumes, "_checked_affine", lambda path, header: header.get_best_affine()),
    "limits": (volumes, "_check_limits", lambda *arguments: None),
    "count": (cohort, "parse_count", lambda text: int(float(text)) if text else None),
    "number": (predictions.math, "isfinite", lambda count: True),
    "settings": (checkpoint, "_check_settings", lambda *arguments: None),
}


class Hang(BaseException):
    """Not an Exception, or a reader would take it for a damaged file."""


def stop(*_):
    raise Hang


def peak_bytes():
    """Most memory held so far (Linux; not getrusage's, which begins with the parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def attempt(read, path):
    """Read one file; returns "read" or "refused", and what is wrong with that or None."""
    started = time.process_time()
    outcome, problem = "read", None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", ResourceWarning)  # Python shows none either
            read(path)
    except InputError as error:
        outcome, message = "refused", str(error)
        rest = message.replace(str(path.with_suffix("")), "", 1)  # resume reads CASE/last.npz
        if rest == message:
            problem = f"does not name the file: {message[:200]!r}"
        elif not message.isprintable() or len(rest) > LONGEST:
            problem = f"not one short line: {message[:200]!r}"
    except (Exception, Hang) as error:
        if args.case is not None:
            traceback.print_exc()
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if caught and not problem:
        problem = f"warns: {caught[0].message}"
    global START
    if peak_bytes() - START > MEMORY:
        problem = f"takes {(peak_bytes() - START) / 2**20:.0f} MiB; {problem}"
        START = peak_bytes()  # named once
    if time.process_time() - started > SECONDS:
        problem = f"takes {time.process_time() - started:.1f} s; {problem}"
    return outcome, problem


def run(name, seed, cases):
    """Try the cases of one reader; returns counts and a list of problems."""
    read, mutate = READERS[name]
    found = {"read": 0, "refused": 0, "problems": []}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            rng = np.random.default_rng([seed, list(READERS).index(name), case])
            suffix, content, what = mutate(rng)
            path = Path(folder) / f"case{case}{suffix}"
            path.write_bytes(content)
            del content
            outcome, problem = attempt(read, path)
            found[outcome] += 1
            if problem:
                found["problems"].append(f"{name} case {case} ({what}): {problem}")
            path.unlink()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500, help="of each reader")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--without", choices=CHECKS)
    args = parser.parse_args()
    volumes.MAX_VOXELS = MAX_VOXELS
    if args.without:
        setattr(*CHECKS[args.without])
    signal.signal(signal.SIGPROF, stop)
    checkpoints.whole()  # what is loaded once is loaded before the start
    START = peak_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 8 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    cases = range(args.cases) if args.case is None else [args.case]
    names = [args.only] if args.only else list(READERS)
    print(json.dumps({name: run(name, args.seed, cases) for name in names}, indent=1))

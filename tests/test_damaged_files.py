"""Damaged files of every kind: read, or refused in one line that names the file; never a bomb.

Each case is drawn from its own seed. That the cases find something is tested, too: with a reader's
check taken away, they must show what it was for.
"""

import functools
import gzip
import io
import json
import signal
import tracemalloc
import warnings
import zipfile

import nibabel
import numpy as np
import pytest

from weakunet.data import cohort, headers, volumes
from weakunet.evaluation import predictions
from weakunet.model import WeakUNet
from weakunet.training import checkpoint
from weakunet.training.run import Run
from weakunet.training.settings import Settings
from weakunet.util.cli import InputError

CASES = 60
MAX_VOXELS = 2**20  # instead of the reader's own limit, so that bombs are small
MEMORY = volumes.MEMORY_PER_VOXEL * MAX_VOXELS + 2**24
BOMB = 2**23  # bytes that a bomb unpacks to, at most
SECONDS = 3  # of CPU
WHOLE = (0, 1, -1, 255, 2**15 - 1, 2**31 - 1, -(2**31), 2**63 - 1)
FLOATS = (np.nan, np.inf, -np.inf, 1e38, 1e-40, 0.0, 1e9, 352.5)
CELLS = [*"nan inf 1e999 -1 3.5 1_0 ٣ 0x10 =1+1 . ../x a/b".split(), "", " ", "a\nb", "a\0b"]
CELLS += ['"', '"a', ",", ";", "\t", "a" * 1000, "9" * 5000, "x" * 200_000]
SETTINGS = (None, -1, 0, 2.5, 10**9, "8", "mean", {}, [], [2, 10**5], [400, 400], [2.0, 3.5])
SHAPES = ("(2**40,)", f"({2**33}, 0)", "(-1,)", "()", "(9" * 999, "(" * 3000 + ")" * 3000)

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="stops hangs by signals")


def pick(rng, items):
    return items[rng.integers(len(items))]


# -- the damage ------------------------------------------------------------------------------------


def overwritten(content, rng, within=360):
    """With a number as large, small or odd as its type allows over some bytes of the header."""
    kind = np.dtype(pick(rng, ("<i2", "<i4", "<i8", "<f4", "<f8", ">i2", ">i4", ">f4")))
    with np.errstate(all="ignore"):
        value = np.array(pick(rng, FLOATS if kind.kind == "f" else WHOLE)).astype(kind).tobytes()
    place = int(rng.integers(min(within, len(content)) or 1)) // 2 * 2
    return content[:place] + value + content[place + len(value) :]


def cut(content, rng):
    """Shorter, longer, or with a piece twice or zeroed."""
    a, b = sorted(rng.integers(len(content) + 1, size=2))
    piece = pick(rng, (b"", 2 * content[a:b], rng.bytes(100), bytes(b - a)))
    return pick(rng, (content[:a], content[:a] + piece + content[b:], content + bytes(512)))


def redeclared(content, rng):
    """Other dimensions in the header; behind it as many zeros as they need, or the bomb has."""
    shape = rng.integers(0, pick(rng, (9, 200, 1200, 32767)), size=3)
    at, kind, numbers = 40, "<i2", [3, *shape]
    if content[:4] == b"\0\0\0\1":  # MGH
        at, kind, numbers = 4, ">i4", shape
    numbers = np.array(numbers).astype(kind).tobytes()
    zeros = bytes(min(4 * int(np.prod(shape.astype(float))), BOMB))
    return content[:at] + numbers + content[at + len(numbers) :] + zeros


def damaged_image(rng, _):
    suffix = pick(rng, (".nii", ".nii.gz", ".mgz"))
    values = np.random.default_rng(0).normal(100, 30, (9, 8, 7)).astype(pick(rng, ("f4", "u1")))
    affine = np.array([[-0.5, 0, 0, 9], [0, 0.04, 0.8, 7], [0, 0.5, -0.06, -5], [0, 0, 0, 1]])
    kind = nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Image
    content = kind(values, affine).to_bytes()
    for _ in range(rng.integers(1, 3)):
        content = pick(rng, (cut, overwritten, overwritten, overwritten, redeclared))(content, rng)
    return suffix, content if suffix == ".nii" else gzip.compress(content, 1)


def damaged_table(text, rng, _):
    lines = [line.split(",") for line in text.split()]
    for _ in range(rng.integers(3)):
        line = pick(rng, lines)
        line[rng.integers(len(line))] = pick(rng, CELLS)
    end, joint = pick(rng, ("\n", "\r\n", "\r", "\0\n")), pick(rng, (",", ",", ";", "\t"))
    text = end.join(joint.join(line) for line in lines)
    content = text.encode(pick(rng, ("utf-8", "utf-8", "utf-16", "utf-32", "cp037")), "replace")
    content = cut(content, rng) if rng.random() < 0.3 else content
    return ".csv", content * (2**20 // len(content) if content and rng.random() < 0.02 else 1)


def training_run(folder):
    return Run(WeakUNet((2, 3), rng=np.random.default_rng(0)), Settings(), folder)


@functools.cache
def whole_checkpoint(folder):
    """Name -> the bytes of the members of a last.npz after three epochs."""
    run = training_run(folder)
    run.epoch, run.history = 3, [(i, 1, 2, 3, 0.5, 6, 7) for i in range(3)]
    run.predicted = np.ones(4, np.float32)
    run.save()
    with zipfile.ZipFile(folder / "last.npz") as file:
        return {name: file.read(name) for name in file.namelist()}


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array))
    return file.getvalue()


def damaged_checkpoint(rng, folder):
    members = dict(whole_checkpoint(folder))
    for _ in range(rng.integers(3)):
        name, change = pick(rng, list(members)), rng.integers(3)
        if change == 0:
            header = json.loads(str(np.load(io.BytesIO(whole_checkpoint(folder)["header.npy"]))))
            place = header["settings"] if rng.random() < 0.8 else header
            place[pick(rng, [*place, "unknown"])] = pick(rng, SETTINGS)
            members["header.npy"] = npy(np.array(json.dumps(header)))
        elif change == 1:
            text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {pick(rng, SHAPES)}, }}"
            odd = [b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text.encode() + bytes(100)]
            odd += [npy(np.zeros(pick(rng, (0, 3, 10**6)), pick(rng, ("f4", "S3", "c8", "M8[s]"))))]
            odd += [npy(np.full(4, np.nan)), cut(members[name], rng), b""]
            members[name] = pick(rng, odd)
        else:
            members[pick(rng, ("../x.npy", "a", name.upper()))] = members.pop(name)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", pick(rng, (0, 0, 0, 0, zipfile.ZIP_DEFLATED))) as written:
        for name, member in members.items():
            written.writestr(name, member)
    content = file.getvalue()
    return ".npz", cut(content, rng) if rng.random() < 0.2 else content


# -- the readers, with what must hold of a value that is accepted ----------------------------------


def read_volume(path):
    volume = volumes.read_volume(path)
    assert volume.array.ndim == 3 and volume.array.dtype == np.float32
    assert volume.array.size <= MAX_VOXELS and np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all() and abs(np.linalg.det(volume.affine)) > 0


def read_cohort(path):
    scans = cohort.read_cohort(path)
    assert scans and len({scan.subject for scan in scans}) == len(scans)
    for scan in scans:
        assert scan.subject.isprintable() and not set(scan.subject) & set("/\\")
        assert scan.count is None or (isinstance(scan.count, int) and scan.count >= 0)


def read_centres(path):
    points = cohort.read_centres(path)
    assert points.shape[1:] == (3,) and np.isfinite(points).all()


def read_predictions(path):
    counts = predictions.read_predictions(path)
    assert counts and all(counts) and np.isfinite(list(counts.values())).all()


def read_checkpoint(path):
    model, _ = checkpoint.load_checkpoint(path)
    assert all(np.isfinite(value).all() for value in model.params.values())
    model.predict(np.zeros((1, 1, *[model.multiple] * 3), np.float32))


def resume(path):
    run = training_run(path.rename(path.with_name("last.npz")).parent)
    run.load()
    assert len(run.history) == run.epoch and run.predicted.ndim == 1
    run.optimizer.step({name: value * 0 for name, value in run.model.params.items()})


def table(text):
    return functools.partial(damaged_table, text)


READERS = {
    "volume": (read_volume, damaged_image),
    "cohort": (read_cohort, table("subject,image,count,split s1,a.nii,3,val s2,b.nii,,")),
    "centres": (read_centres, table("x_mm,y_mm,z_mm 1,2,3 -4.5,6e1,7 0,0,0")),
    "predictions": (read_predictions, table("subject,count_predicted s1,3.25 s2,0")),
    "checkpoint": (read_checkpoint, damaged_checkpoint),
    "resume": (resume, damaged_checkpoint),
}


class Hang(BaseException):
    """Not an Exception, or a reader would take it for a damaged file."""


def attempt(read, path):
    """("read" or "refused", what is wrong with that or None)."""

    def stop(*_):
        raise Hang(f"takes more than {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    tracemalloc.start()
    outcome, problem = "read", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)
            read(path)
    except InputError as error:
        outcome, message = "refused", str(error)
        if not message.isprintable() or len(message) > 600 + len(str(path)):
            problem = f"not one short line: {message[:200]!r}"
        elif str(path) not in message and "last.npz" not in message:
            problem = f"does not name the file: {message[:200]!r}"
    except (Exception, Hang) as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return outcome, f"takes {peak / 2**20:.0f} MiB; {problem}" if peak > MEMORY else problem


@pytest.fixture
def outcomes_of(tmp_path, monkeypatch):
    """A function: reader, number of cases -> [(outcome, problem)]."""
    for module in (headers, checkpoint):
        monkeypatch.setattr(module, "MAX_VOXELS", MAX_VOXELS)

    def run(name, cases):
        outcomes = []
        for case in range(cases):
            rng = np.random.default_rng([1, list(READERS).index(name), case])
            read, damaged = READERS[name]
            suffix, content = damaged(rng, tmp_path / "whole")
            path = tmp_path / f"case{case}{suffix}"
            path.write_bytes(content)
            outcomes.append(attempt(read, path))
        return outcomes

    (tmp_path / "whole").mkdir()
    yield run
    whole_checkpoint.cache_clear()


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(reader, outcomes_of):
    outcomes, problems = zip(*outcomes_of(reader, CASES), strict=True)
    assert set(problems) == {None}
    # neither all of them whole nor mere noise
    assert outcomes.count("read") >= 2 and outcomes.count("refused") >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "module", "check", "without", "sign"),
    [
        ("volume", volumes, "checked_affine", lambda path, h: h.get_best_affine(), "Orientation"),
        ("volume", volumes, "check_limits", lambda *arguments: None, "MiB"),
        ("cohort", cohort, "parse_count", lambda text: int(float(text)) if text else None, "Error"),
        ("predictions", predictions.math, "isnan", lambda count: False, "AssertionError"),
        ("checkpoint", checkpoint, "_check_settings", lambda *arguments: None, ""),
    ],
)
def test_missing_check_is_found(reader, module, check, without, sign, outcomes_of, monkeypatch):
    monkeypatch.setattr(module, check, without)
    outcomes = outcomes_of(reader, (2 if reader == "volume" else 5) * CASES)
    assert any(problem and sign in problem for _, problem in outcomes)

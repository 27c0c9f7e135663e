"""Damaged last.npz: of bytes, and of members behind a right checksum."""

import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from damage import ANY, BOMB, pick
from weakunet.model import WeakUNet
from weakunet.training import loop as training

ODD = (None, -1, 0, 1, 2.5, 10**5, 10**9, 10**30, "8", "", "mean", True, {}, float("nan"))
ODD_CHANNELS = ([], [2], [0, 3], [2, 10**5], [10**5, 2], [-2, 3], [2, "3"], [2.0, 3.5], [[2, 3]])
ODD_CHANNELS += ([10**6] * 8, [1] * 200)
ODD_SHAPES = ([10**5] * 3, [1, 1], [1, 1, 1e400], ["a"] * 3)
ODD_DECLARED = ("(2**40,)", "(-1,)", "()", "(134217728,)", "(" * 3000 + ")" * 3000)
ODD_DECLARED += (f"({2**40},)", f"({2**63},)", f"({2**33}, 0)", f"({10**40},)")
ODD_KINDS = ("|O", "<U999999999", "|V0", "<f4, <f4", "x", "|S2147483647")


def training_run(folder):
    """A small training run as it begins."""
    model = WeakUNet((2, 3), rng=np.random.default_rng(0))
    return training.Run(model, SimpleNamespace(lr=1.0, rho=0.95, eps=1e-6), folder)


@functools.cache
def whole():
    """The bytes of a last.npz after three epochs, and name -> the bytes of its members."""
    with tempfile.TemporaryDirectory() as folder:
        run = training_run(Path(folder))
        run.epoch, run.history = 3, [(i, 1, 2, 3, 0.5, 6) for i in range(3)]
        run.predicted = np.ones(4, np.float32)
        run.save()
        content = (Path(folder) / "last.npz").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return content, {name: file.read(name) for name in file.namelist()}


def npy(array, **options):
    """An array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def declared(shape, kind):
    """The bytes of an .npy file that declares another shape or type than it holds."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text + bytes(100)


def odd_header(members, rng):
    """Other settings, shape or format than the arrays'."""
    header = json.loads(str(np.load(io.BytesIO(whole()[1]["header.npy"]))))
    place = pick(rng, ("settings", "settings", "settings", "shape", "format"))
    if place == "settings":
        key = pick(rng, [*header["settings"], "dtype", "rng", "unknown"])
        header["settings"][key] = pick(rng, (*ODD, *ODD_CHANNELS))
    else:
        header[place] = pick(rng, (*ODD, *ODD_CHANNELS, *ODD_SHAPES))
    odd = ("", "[" * 10**5, "{}", "[1]", '"a"', "null")
    members["header.npy"] = npy(np.array(pick(rng, (json.dumps(header),) * 6 + odd)))


def odd_member(members, rng):
    """Another array, or something that is none, in the place of one."""
    name = pick(rng, list(members))
    shape = np.load(io.BytesIO(whole()[1].get(name, npy(np.zeros(2))))).shape
    kind = pick(rng, ("?", "S3", "U2", "c8", "M8[s]", "f2", "i8", ">f4", [("a", "f4")]))
    odd = (
        npy(np.array([{}], object), allow_pickle=True),
        npy(np.zeros((*shape, 2), np.float32)),
        npy(np.full(shape, np.nan, np.float32)),
        npy(np.full(shape, 1e300)),
        npy(np.full(shape, -1, np.float32)),
        npy(np.zeros(shape, kind)),
        npy(np.zeros(BOMB // 16, np.float32)),
        declared(pick(rng, ODD_DECLARED), "<f4"),
        declared("(3,)", pick(rng, ODD_KINDS)),
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(1000),
        pick(rng, ANY)(members[name] or b"a", rng),
        b"",
    )
    members[name] = pick(rng, odd)


def other_members(members, rng):
    """A member under another name, or none."""
    name = pick(rng, list(members))
    content = members.pop(name) if rng.random() < 0.7 else members[name]
    if rng.random() < 0.7:
        other = ("../x.npy", " ", "a", "training.npy", "header", name.upper(), "x" * 60000)
        members[pick(rng, other)] = content


def damaged(rng):
    """See the package."""
    content, members = whole()
    if rng.random() < 0.35:
        change = pick(rng, ANY)
        return ".npz", change(content, rng), change.__name__
    if rng.random() < 0.03:
        return ".npz", pick(rng, list(members.values())), "an array alone"
    members, done = dict(members), []
    for _ in range(rng.integers(1, 3)):
        change = pick(rng, (*(odd_header,) * 2, *(odd_member,) * 3, other_members))
        change(members, rng)
        done.append(change.__name__)
    file = io.BytesIO()
    packed = rng.random() < 0.1
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else 0) as written:
        for name, member in members.items():
            written.writestr(name, member)
    return ".npz", file.getvalue(), ", ".join(done)

"""Damaged NIfTI and MGH images."""

import functools
import gzip

import nibabel
import numpy as np

from damage import ANY, BOMB, overwrite, pick


@functools.cache
def whole():
    """Kind -> the bytes of a whole file, not compressed."""
    values = np.random.default_rng(0).normal(100, 30, (9, 8, 7))
    affine = np.array([[-0.5, 0, 0, 9], [0, 0.04, 0.8, 7], [0, 0.5, -0.06, -5], [0, 0, 0, 1]])
    scaled = nibabel.Nifti1Image(values.astype(np.int16), affine)
    scaled.header.set_slope_inter(2, 100)
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(">f4")
    extended = nibabel.Nifti1Image(values.astype(np.uint8), affine)
    extended.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a" * 40))
    images = {
        "NIfTI": nibabel.Nifti1Image(values.astype(np.float32), affine),
        "scaled NIfTI": scaled,
        "NIfTI, doubles": nibabel.Nifti1Image(values, affine),
        "big-endian NIfTI": nibabel.Nifti1Image(values, affine, big),
        "extended NIfTI": extended,
        "NIfTI-2": nibabel.Nifti2Image(values.astype(np.int32), affine),
        "MGH": nibabel.MGHImage(values.astype(np.float32), affine),
        "MGH, bytes": nibabel.MGHImage(values.astype(np.uint8), affine),
    }
    return {kind: image.to_bytes() for kind, image in images.items()}


def overwrite_header(content, rng):
    """Write an odd number over a field of the header."""
    return overwrite(content, rng, within=360)


def redeclare(content, rng):
    """Other dimensions in the header; behind it as many zeros as they need, or the bomb has."""
    order = ">" if content[:1] == b"\0" else "<"
    most = pick(rng, (9, 200, 1200, 32767))
    shape = rng.integers(rng.random() > 0.1, most, size=rng.integers(1, 8))
    shape = shape * pick(rng, (1, 1, 1, 1, -1))
    at, kind = 40, f"{order}i2"
    numbers = [len(shape), *shape] + [1] * (7 - len(shape))
    if content[:4] == b"\0\0\0\1":  # MGH
        at, kind, numbers = 4, ">i4", [*shape, 1, 1, 1, 1][:4]
    elif 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")):
        at, kind = 16, f"{order}i8"
    numbers = np.array(numbers).astype(kind).tobytes()
    wanted = 4 * int(np.prod(abs(shape.astype(object))))
    zeros = bytes(min(wanted, BOMB) if rng.random() < 0.7 else 0)
    return content[:at] + numbers + content[at + len(numbers) :] + zeros


def long_header(content, rng):
    """An extension, or the way to the voxels, that is very long."""
    order = "big" if content[:1] == b"\0" else "little"
    length = pick(rng, (0, 8, 16, 2**16, 2**24, 2**31 - 16))
    extension = b"\1\0\0\0" + length.to_bytes(4, order) + b"\0\0\0\4"
    offset = pick(rng, (352, 400, 2**16, 2**24, 2**30, 1e20))
    offset = np.array(offset, "<f4" if order == "little" else ">f4").tobytes()
    padding = pick(rng, (b"", b"\0", b"\x08\0\0\0\4\0\0\0")) * int(rng.integers(BOMB // 8))
    return content[:108] + offset + content[112:348] + extension + padding


def damaged(rng):
    """See the package."""
    suffix = pick(rng, (".nii", ".nii.gz", ".mgz", ".mgh"))
    any_kind = rng.random() < 0.1
    kinds = [kind for kind in whole() if any_kind or kind.startswith("MGH") == ("mg" in suffix)]
    done = [pick(rng, kinds)]
    content = whole()[done[0]]
    for _ in range(rng.integers(1, 3)):
        change = pick(rng, (*ANY, *(overwrite_header,) * 3, redeclare, long_header))
        if len(content):
            content = change(content, rng)
            done.append(change.__name__)
    if suffix in (".nii.gz", ".mgz"):
        content = gzip.compress(content, 1)
        if rng.random() < 0.3:
            change = pick(rng, ANY)
            content = change(content, rng)
            done += ["packed", change.__name__]
        if rng.random() < 0.05:
            content = gzip.compress(b"") * 5000 + content
            done.append("many members")
    return suffix, content, ", ".join(done)

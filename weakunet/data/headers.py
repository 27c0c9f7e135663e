"""The header of an image file: where its voxels lie, how they are stored, and whether that holds.

What a header declares is checked against the file before memory is asked for. Lengths are turned
into mm, whatever unit the header names.
"""

import gzip
import logging
import math
import os
from pathlib import Path

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spatialimages import HeaderDataError

from weakunet.util.cli import InputError, one_line

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
MAX_VOXELS = 2**29  # 2 GiB in float32; more is taken for a damaged header
MAX_DEFLATE = 1040  # deflate never shrinks by more than 1032:1
MAX_HEADER = 2**24  # bytes before the voxels, extensions included
GOOD_RAS = slice(28, 30)  # where an .mgh file says whether it has a place in the world
NOWHERE = "so its place in the world is unknown"
SET_PLACE = "set its qform or sform, or convert it again from the scanner's files"
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes for metre, mm and micron

# nibabel's remarks on odd headers would stand between our own one-line messages
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def read_header(path):
    """Read the header alone, in mm. What it declares is not checked yet; see `check_limits`."""
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: not one of {', '.join(SUFFIXES)}; convert it, as with dcm2niix")
    if not os.path.isfile(path):  # also where the name is too long for a file
        raise InputError(f"{path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or download it again")
    mgh = path.name.lower().endswith((".mgz", ".mgh"))
    try:
        with open_image(path) as file:
            start = file.read(Nifti2Header.sizeof_hdr)
        kinds = [MGHHeader] if mgh else [Nifti1Header, Nifti2Header]
        kind = next((kind for kind in kinds if mgh or kind.may_contain_header(start)), None)
        if kind is None:
            raise ValueError("no NIfTI header")
        with np.errstate(all="ignore"):  # odd numbers are checked below
            header = kind(start[: kind.template_dtype.itemsize])
            header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
            if not mgh:
                _standardise(header)
            header.get_best_affine()
    except PermissionError:
        raise InputError(f"{path}: no permission to read it; change its permissions") from None
    except Exception as error:
        raise InputError(
            f"{path}: not a readable image ({one_line(error)}); copy or convert it again"
        ) from None
    if mgh and start[GOOD_RAS] == bytes(2):  # nibabel and FreeSurfer would assume coronal slices
        raise InputError(f"{path}: goodRASFlag is 0, {NOWHERE}; {SET_PLACE}")
    return header


def _standardise(header):
    """Lengths in mm; the quaternion of the qform and the voxels' offset as NIfTI's library does."""
    if header.get_data_offset() < header.single_vox_offset:  # nibabel would read the header's bytes
        header["vox_offset"] = header.single_vox_offset
    in_mm = MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    if in_mm != 1:
        for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[name] = header[name] * in_mm
        header["pixdim"][1:4] *= in_mm
        header.set_xyzt_units("mm")
    names = "quatern_b", "quatern_c", "quatern_d"
    length = np.linalg.norm([float(header[name]) for name in names])
    if length > 1:  # rounded by another program; nibabel refuses it
        for name in names:
            header[name] = header[name] / length


def check_limits(path, header):
    """Refuse an image that is not grey and 3-D, too large, or larger than its file can hold."""
    shape = tuple(int(n) for n in header.get_data_shape())
    dtype, size = header.get_data_dtype(), path.stat().st_size
    if not 2 <= len(shape) <= 3 and not (len(shape) > 3 and set(shape[3:]) == {1}):
        raise InputError(f"{path}: {len(shape)}-D image {shape}, not 3-D; extract one volume of it")
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise InputError(f"{path}: {shape} voxels; the header is damaged, or crop the image")
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise InputError(f"{path}: voxels are {dtype}, not grey values; convert it to a grey image")
    if header.get_data_offset() > MAX_HEADER:
        raise InputError(
            f"{path}: {header.get_data_offset()} bytes before the voxels, at most {MAX_HEADER} are "
            "read; remove the header's extensions, or copy the file again if it is damaged"
        )
    try:
        header.get_slope_inter()
    except HeaderDataError:
        slope, intercept = header["scl_slope"], header["scl_inter"]
        raise InputError(
            f"{path}: the header's scl_slope is {slope:g} and scl_inter {intercept:g}; "
            "set both (1 and 0: as stored) or convert it again"
        ) from None
    if end_of_voxels(header) > size * (MAX_DEFLATE if is_compressed(path) else 1):
        raise InputError(
            f"{path}: truncated ({size} bytes for {shape} voxels); copy or download it again"
        )


def end_of_voxels(header):
    """The byte after the last voxel, uncompressed, as the header has it."""
    voxels = math.prod(int(n) for n in header.get_data_shape())
    return int(header.get_data_offset()) + voxels * header.get_data_dtype().itemsize


def is_compressed(path):
    return path.name.lower().endswith((".nii.gz", ".mgz"))


def open_image(path):
    """Open a file to read its bytes, decompressed."""
    return gzip.open(path) if is_compressed(path) else open(path, "rb")


def checked_affine(path, header):
    """The image's affine, if it places the voxels in the world."""
    if isinstance(header, Nifti1Header):  # NIfTI-2 as well
        if not (header["sform_code"] > 0 or header["qform_code"] > 0):
            raise InputError(f"{path}: no qform and no sform, {NOWHERE}; {SET_PLACE}")
    with np.errstate(all="ignore"):
        affine = np.asarray(header.get_best_affine(), np.float64)
    usable = np.isfinite(affine).all() and abs(affine).max() < 1e6
    if usable:
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        usable = sizes.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3
    if not usable:
        raise InputError(f"{path}: unusable affine {affine[:3].tolist()}; {SET_PLACE}")
    return affine


def forms_apart(path):
    """How far qform and sform contradict each other at a corner, as text; None: within a voxel.

    Programs differ in which one they believe; nibabel, and so this package, takes the sform.
    """
    header = read_header(path)
    if "sform_code" not in header or header["sform_code"] == 0 or header["qform_code"] == 0:
        return None
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(header["dim"][1:4])[:, None] - 1)
    apart = (header.get_sform() - header.get_qform()) @ np.vstack([corners, np.ones(8)])
    apart_mm = np.linalg.norm(apart[:3], axis=0).max()
    if apart_mm > min(header.get_zooms()[:3]):
        return f"qform and sform place a corner {apart_mm:.1f} mm apart"
    return None

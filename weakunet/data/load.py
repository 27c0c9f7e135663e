"""Load scans: from the rows of a cohort table, from files, or from a phantom.

A row with an ROI is a raw scan, prepared in memory exactly as `weakunet.preprocess` does. A row
without one is a prepared scan, with intensities in [0, 1], and 0 outside its ROI only.
"""

import re

import numpy as np

from weakunet.data.cohort import LoadedScan, Scan, read_centres, read_cohort, split_cohort
from weakunet.data.headers import forms_apart
from weakunet.data.phantom import simulate_cohort
from weakunet.data.prepare import prepare, without_strays
from weakunet.data.slices import cut_slab, find_slice
from weakunet.data.volumes import Volume, read_mask, read_volume, require_same_grid, world_to_index
from weakunet.util.cli import InputError, note, progress
from weakunet.util.threads import cores

PHANTOM_SCANS = {"train": 800, "val": 100, "test": 30}
RANGE_TOLERANCE = 1e-3


def load_scans(settings, splits):
    """Load the cohort of --data, or simulate one: dict split -> list of LoadedScan."""
    if settings.data is None:
        wanted = {split: PHANTOM_SCANS[split] for split in splits}
        return simulate_cohort(settings.phantom, wanted, settings.seed, cores(), show=True)
    table = split_cohort(read_cohort(settings.data), settings.seed, settings.data)
    rows = [scan for scan in table if scan.split in splits]
    loaded = {split: [] for split in splits}
    for scan in progress(rows, "reading scans"):
        loaded[scan.split].append(load_scan(scan))
    return loaded


def read_raw(scan):
    """Read a raw scan and its ROI: a Volume and a Volume of bool on the same grid."""
    volume, roi = read_volume(scan.image, nan_ok=True), read_mask(scan.roi)
    require_same_grid(volume, scan.image, roi, scan.roi)
    if about := forms_apart(scan.image):
        note(f"{scan.image}: {about}; the sform is taken")
    mask = without_strays(roi.array)
    if n_strays := int((roi.array & ~mask).sum()):
        note(f"{scan.roi}: {n_strays} stray voxels, apart from the rest, are left out")
        roi = Volume(mask, roi.affine)
    return zero_nan(volume, mask, scan), roi


def zero_nan(volume, roi, scan):
    """Read NaN and infinity outside the ROI as 0, with a note on stderr: SPM writes NaN there.

    roi : (D, H, W) bool. Raises InputError where such a voxel lies inside.
    """
    if np.isfinite([volume.array.min(), volume.array.max()]).all():
        return volume
    bad = ~np.isfinite(volume.array)
    if bad[roi].any():
        raise InputError(
            f"{scan.image}: NaN or infinite voxels inside the ROI {scan.roi}; "
            "set them to 0, shrink the ROI or convert the scan again"
        )
    volume.array[bad] = 0
    note(f"{scan.image}: {bad.sum()} NaN voxels, all of them outside the ROI, are read as 0")
    return volume


def read_prepared(scan):
    """Read a prepared scan; InputError if it is constant or not in [0, 1]."""
    volume = read_volume(scan.image)
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise InputError(f"{scan.image}: every voxel is {low:g}; check that this is the scan")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InputError(
            f"{scan.image}: intensities {low:g} to {high:g}, [0, 1] expected; "
            "prepare it with python -m weakunet.preprocess"
        )
    np.clip(volume.array, 0, 1, out=volume.array)
    outside = np.pad(volume.array == 0, 1, constant_values=True)
    if n_holes := int((outside & ~without_strays(outside)).sum()):
        note(
            f"{scan.image}: 0, so outside to the network, at {n_holes} voxels amid the ROI; "
            "prepare it again with python -m weakunet.preprocess"
        )
    return volume


def load_scan(scan, **how):
    """A row of the table as a LoadedScan: the second that `read_scan` returns."""
    return read_scan(scan, **how)[1]


def read_scan(scan, raw_as_is=False, invert=False, slab_mm=None, spacing_mm=None):
    """Load a scan as it is in its file (a Volume), and as a LoadedScan; a raw one is prepared.

    raw_as_is : leave a raw scan as it is in its file, to compare it with predictions on its grid
    invert, slab_mm, spacing_mm : how to prepare a raw scan, as for `weakunet.preprocess`
    """
    if scan.roi is None:
        volume = prepared = read_prepared(scan)
    elif raw_as_is:
        volume = prepared = read_volume(scan.image, nan_ok=True)
        np.nan_to_num(volume.array, copy=False, posinf=0, neginf=0)
    else:
        volume, roi = read_raw(scan)
        prepared = prepare(volume, roi, invert, scan.image, scan.roi, spacing_mm)
    centres_zyx = None
    if scan.centres is not None:
        centres_mm = read_centres(scan.centres)
        _require_near(world_to_index(volume, centres_mm), volume, scan)
        centres_zyx = world_to_index(prepared, centres_mm)
    k = find_slice(prepared, scan.slice_z_mm, scan.image if prepared is volume else scan.roi)
    loaded = LoadedScan(scan.subject, prepared, scan.count, centres_zyx, k)
    if slab_mm is not None and prepared is not volume:
        loaded = cut_slab(loaded, slab_mm)
    return volume, loaded


def _require_near(centres_zyx, volume, scan):
    outside = (centres_zyx < -0.5) | (centres_zyx > np.array(volume.array.shape) - 0.5)
    if len(centres_zyx) and outside.any(axis=1).all():
        raise InputError(
            f"{scan.centres}: every centre lies outside {scan.image}; "
            "give world coordinates in RAS+ mm (negate x and y of LPS ones)"
        )


def scans_from_files(paths, roi, slice_z_mm):
    """One Scan per image, named after its file. Raises InputError when two share a name."""
    scans = {}
    for path in paths:
        name = re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", "", path.name, flags=re.IGNORECASE)
        if not name.isprintable():  # also where it is not in the system's encoding
            raise InputError(f"{path}: its name has odd characters; rename it")
        if name.casefold() in scans:
            raise InputError(
                f"{path}: a second scan called {name}; use --data, where each has its own name"
            )
        scans[name.casefold()] = Scan(name, path, roi=roi, slice_z_mm=slice_z_mm)
    return list(scans.values())

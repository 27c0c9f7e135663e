"""What can be wrong with one scan by itself; check_cohort.py compares the scans of a cohort.

A scan with an ROI in the table is raw. One without is prepared: in [0, 1] and 0 outside the region,
as weakunet.preprocess writes it, so the voxels above 0 are its region.
"""

import dataclasses

import numpy as np
from scipy.spatial.distance import pdist

from weakunet.data.cohort import read_centres
from weakunet.data.headers import forms_apart
from weakunet.data.load import RANGE_TOLERANCE, zero_nan
from weakunet.data.prepare import TRIM
from weakunet.data.slices import HALF_VOXEL, find_slice
from weakunet.data.volumes import mask_of, read_volume, require_same_grid, world_to_index
from weakunet.util.cli import InputError
from weakunet.util.resume import array_digest

LARGEST_REGION = 0.9  # fraction of the image: more is not a mask
MOST_LABELS = 4  # whole numbers above 0 in a mask: more is a segmentation
SAME_PLACE_MM = 0.1


@dataclasses.dataclass
class Report:
    """What is wrong with a scan, and what is compared across the cohort (None: unknown)."""

    subject: str
    problems: list = dataclasses.field(default_factory=list)  # (check, what is wrong)
    spacing_mm: tuple | None = None  # (z, y, x)
    directions: np.ndarray | None = None  # (3, 3), columns: where x, y, z point in the world
    content: str | None = None  # hash of size and voxels, however stored; None: constant
    region_mm3: float | None = None
    level: float | None = None  # a raw scan's median intensity in its region

    def add(self, check, what):
        self.problems.append((check, " ".join(str(what).split())))


def check_scan(scan):
    """Read all files of a Scan once; return its Report. One scan and its region are in memory."""
    report = Report(scan.subject)
    volume = region = None
    try:
        volume = read_volume(scan.image, nan_ok=scan.roi is not None)
    except InputError as error:
        report.add("image", error)
    if scan.roi is not None:
        region = _read_region(report, scan, volume)
    if volume is not None:
        _check_image(report, scan, volume, region)
        if about := forms_apart(scan.image):
            report.add("image", about)
    if scan.roi is None and report.content is not None:
        region = volume.array > 0
    if volume is not None and region is not None:
        _check_region(report, scan, volume, region)
    k = None
    if volume is not None:
        try:
            k = find_slice(volume, scan.slice_z_mm, scan.image)
        except InputError as error:
            report.add("slice", error)
        if k is not None and region is not None and not region[k].any():
            report.add("slice", f"at z = {scan.slice_z_mm:g} mm there is nothing of the region")
    if scan.centres is not None:
        try:
            _check_centres(report, scan, volume, region, k)
        except InputError as error:
            report.add("centres", error)
    return report


def _check_image(report, scan, volume, region):
    report.spacing_mm = volume.spacing_mm
    report.directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    skew = np.abs(report.directions.T @ report.directions - np.eye(3)).max()
    if skew > 0.01:
        report.add("affine", f"its axes are {np.degrees(np.arcsin(skew)):.1f} degrees off square")
    try:
        zero_nan(volume, np.zeros(1, bool) if region is None else region, scan)
    except InputError as error:
        report.add("image", error)
        return
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        report.add("intensity", f"every voxel is {low:g}")
        return
    if scan.roi is None and (low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE):
        what = f"{low:g} to {high:g}, not [0, 1]: a raw scan? name its roi, then preprocess"
        report.add("intensity", what)
    report.content = array_digest(volume.array + 0.0)  # -0 becomes 0


def _read_region(report, scan, volume):
    try:
        roi = read_volume(scan.roi, nan_ok=True)
        region = mask_of(roi, scan.roi).array
        if about := forms_apart(scan.roi):
            report.add("roi", about)
        if volume is not None:
            require_same_grid(volume, scan.image, roi, scan.roi)
    except InputError as error:
        report.add("roi", error)
        return None
    values = np.unique(roi.array[region])
    if len(values) > MOST_LABELS and (values % 1 == 0).all():
        report.add("roi", f"holds {len(values)} labels, all of which are taken as the region")
    elif len(values) > MOST_LABELS:
        what = f"not a mask: {len(values)} values from {values[0]:.2g} to {values[-1]:.2g}, all"
        remedy = "taken as the region; resample it with the nearest neighbour"
        report.add("roi", f"{what} {remedy}")
    if region.mean() > LARGEST_REGION:
        report.add("roi", f"fills {region.mean():.0%} of the image; is it the mask?")
    return region


def _check_region(report, scan, volume, region):
    if not region.any():
        report.add("roi" if scan.roi else "image", "no voxel of the region is above 0")
        return
    report.region_mm3 = float(region.sum() * volume.voxel_mm3)
    if scan.roi is not None and report.content is not None:
        inside = volume.array[region]
        report.level = float(np.median(inside))
        if inside.min() == np.quantile(inside, 1 - TRIM):
            report.add("intensity", f"99 % of the region has the same value, {inside.min():g}")


def _check_centres(report, scan, volume, region, k):
    """Number and places of the marked lesions; `k` is the slice that was counted, or None."""
    centres_mm = read_centres(scan.centres)
    if len(centres_mm) > 1 and pdist(centres_mm).min() < SAME_PLACE_MM:
        report.add("centres", f"two within {SAME_PLACE_MM} mm of each other")
    if volume is None:
        return
    places = world_to_index(volume, centres_mm)
    if scan.slice_z_mm is None or k is not None:
        counted = np.ones(len(places), bool) if k is None else abs(places[:, 0] - k) <= HALF_VOXEL
        if scan.count is not None and scan.count != counted.sum():
            where = "" if k is None else " in the slice"
            report.add("counts", f"count {scan.count}, but {counted.sum()} centres{where}")
    voxels = np.floor(places + 0.5).astype(int)
    outside = ((voxels < 0) | (voxels >= volume.array.shape)).any(axis=1)
    if outside.any():
        remedy = "; LPS coordinates? (RAS+ is needed)" if outside.all() else ""
        report.add("centres", f"{outside.sum()} of {len(voxels)} outside the image{remedy}")
    if region is not None:
        boxes = [tuple(slice(max(0, i - 1), i + 2) for i in voxel) for voxel in voxels[~outside]]
        away = sum(not region[box].any() for box in boxes)
        if away:
            report.add("centres", f"{away} of {len(voxels)} more than a voxel outside the region")

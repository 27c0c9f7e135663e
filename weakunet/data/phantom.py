"""Simulated scans of the basal ganglia with a known number of lesions at known places.

Every scan shows the same anatomy (the paper's scans are registered, section 2.1) up to a small
smooth warp, with texture, a bias field, partial volume and Rician noise. Lesions are bent bright
tubes. Bright and dark things that are not lesions (a ventricle, a thin sheet, blobs, spikes, voids)
come in numbers that do not depend on the count, so only the lesions reveal it. The ventricle fills
more than 2 % of the mask: with less, trimming the highest 1 % would make an image's gain depend on
its lesions, and a network could count without looking. The phantom is ours; the paper's scans are
not public.

In a `sliced` preset, lesions are everywhere, but only those visible in one slice are counted and
listed, as in the paper: tubes that add at least half their contrast to a voxel of the slice. A
network must not count the lesions beside the slice, which are seen faintly or not at all.

Intensities are relative to a full scale of 1 (white matter .40); lengths are in millimetres.
"""

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from weakunet.data.cohort import SPLITS, LoadedScan
from weakunet.data.phantom_lesions import draw_count, draw_lesions
from weakunet.data.prepare import DILATION_VOX, prepare
from weakunet.data.slices import cut_slab
from weakunet.data.volumes import Volume, index_to_world, world_to_index
from weakunet.util.cli import progress
from weakunet.util.processes import map_processes

SPACING_MM = (0.8, 0.49, 0.49)  # z, y, x, as the paper's scans
MARGIN_VOX = 2  # the raw image shows so much around the box that preprocessing crops
WORTH_PROCESSES_VOX = 10**7  # in smaller cohorts, starting processes takes longer
BLOB_REACH_MM = 16.0  # beyond it a blob adds less than float32 can hold

# centre, half axes (x right, y anterior, z superior; the box is -1..1), angle about z, contrast
VENTRICLE = ((-0.46, 0.30, 0.10), (0.21, 0.42, 0.62), -12.0, 0.45)
HIGH_VENTRICLE = ((-0.46, 0.30, 0.62), (0.21, 0.42, 0.30), -12.0, 0.45)  # not in the middle slice
NUCLEI = (
    ((-0.10, 0.45, 0.15), (0.21, 0.30, 0.50), -12.0, 0.16),  # caudate
    ((0.40, -0.02, 0.00), (0.20, 0.60, 0.55), 12.0, 0.14),  # putamen
    ((0.06, -0.22, -0.10), (0.14, 0.34, 0.32), 12.0, -0.06),  # pallidum
)


@dataclass(frozen=True)
class Preset:
    """Size of the prepared scan and what is in it."""

    shape: tuple  # (D, H, W) after preprocessing
    mean_count: float  # of the negative binomial that the numbers of lesions are drawn from
    max_count: int
    blobs: int  # maximum number of smooth bright blobs
    spikes: int  # maximum number of single bright voxels
    voids: int  # maximum number of dark blobs
    contrast: tuple = (0.24, 0.42)  # range of the lesions' brightness
    ventricle: tuple = VENTRICLE
    sides: int = 1  # 2: the left side, too, mirrored
    sliced: bool = False  # only the slice above the middle is counted
    slab_mm: float | None = None  # keep only what lies this close to that slice

    @property
    def slice_index(self):
        """Along z in the prepared scan, or None."""
        return self.shape[0] // 2 if self.sliced else None

    @property
    def slice_z_mm(self):
        """The world height of the slice (the middle of the scan is at 0 mm), or None."""
        return SPACING_MM[0] * (0.5 - self.shape[0] % 2 / 2) if self.sliced else None


SLICE = Preset((20, 40, 40), 15.0, 60, blobs=3, spikes=12, voids=2, sliced=True)
PRESETS = {
    "tiny": Preset((16, 32, 32), 3.1, 10, blobs=3, spikes=9, voids=2),
    "mid": Preset((20, 40, 40), 4.2, 15, blobs=3, spikes=12, voids=2),
    "standard": Preset((24, 48, 48), 5.0, 20, blobs=4, spikes=16, voids=2),
    "slice": SLICE,
    "slab": replace(SLICE, slab_mm=2.4),  # the same scans
    "paper": Preset(
        (84, 128, 168),
        95.0,
        400,
        blobs=60,
        spikes=600,
        voids=40,
        contrast=(0.255, 0.44),
        ventricle=HIGH_VENTRICLE,
        sides=2,
        sliced=True,
    ),
}


def smooth_noise(rng, shape, spacing_mm, sd_mm):
    """Draw Gaussian noise of unit variance, as smooth as blurring by `sd_mm` makes it."""
    blurs = [_blur_matrix(n, sd_mm / step) for n, step in zip(shape, spacing_mm, strict=True)]
    knots = rng.standard_normal([blur.shape[1] for blur in blurs], dtype=np.float32)
    along_x = knots @ blurs[2].T
    along_yx = blurs[1] @ along_x
    return (blurs[0] @ along_yx.reshape(len(knots), -1)).reshape(shape)


@functools.lru_cache(maxsize=64)
def _blur_matrix(size, sd_vox):
    """Gaussian weights (size, knots) from knots at most .7 sd apart to voxels; rows of unit length,
    so that knots of unit variance give voxels of unit variance."""
    n_knots = int(min(size, np.ceil(size / (0.7 * sd_vox)) + 1))
    knots = np.linspace(0, size - 1, n_knots, dtype=np.float32)
    weight = np.exp(-0.5 * ((np.arange(size, dtype=np.float32)[:, None] - knots) / sd_vox) ** 2)
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)


def _ellipsoid(grid, centre, half_axes, degrees, softness):
    """The fraction of every voxel inside an ellipsoid; `grid` (3, D, H, W): x, y, z."""
    turn = np.deg2rad(degrees)
    x, y, z = (axis - c for axis, c in zip(grid, centre, strict=True))
    a = (np.cos(turn) * x + np.sin(turn) * y) / half_axes[0]
    b = (np.cos(turn) * y - np.sin(turn) * x) / half_axes[1]
    outward = np.sqrt(a * a + b * b + (z / half_axes[2]) ** 2) - 1
    return np.clip(0.5 - outward * min(half_axes) / softness, 0, 1)


@functools.lru_cache(maxsize=4)
def _template(shape, sides=1, ventricle=VENTRICLE):
    """Return all voxels' x, y, z (-1..1 across a side's prepared box), the region, its tissue."""
    voxels = [np.arange(-MARGIN_VOX, n + MARGIN_VOX, dtype=np.float32) for n in shape]
    axes = [(i + 0.5) * 2 / n - 1 for i, n in zip(voxels, shape, strict=True)]
    if sides == 2:
        axes[2] = 2 * abs(axes[2]) - 1  # the left side is the right one mirrored
    z, y, x = np.meshgrid(*axes, indexing="ij")
    grid = np.stack([x, y, z])
    # dilating the region gives a box of `shape`
    half = [1 - 2 * DILATION_VOX / n for n in (shape[2] / sides, shape[1], shape[0])]
    roi = sum((axis / size) ** 4 for axis, size in zip(grid, half, strict=True)) <= 1
    return grid, roi, roi & (_ellipsoid(grid, *ventricle[:3], 0.1) == 0)


def simulate_scan(preset, rng):
    """Simulate one raw scan of a preset (a name in PRESETS).

    Returns
    -------
    image : (D, H, W) float32 raw intensities, MARGIN_VOX wider on each side than when prepared
    roi : (D, H, W) bool, where lesions are counted
    centres_zyx : (count, 3) float64, in voxels: the lesions' middles, or where a slice is counted
        the middles of what is visible in it
    """
    kind = PRESETS[preset]
    grid, roi, tissue = _template(kind.shape, kind.sides, kind.ventricle)
    shape = roi.shape

    def noise(sd_mm):
        return smooth_noise(rng, shape, SPACING_MM, sd_mm)

    half_mm = np.array([n * step / 2 for n, step in zip(kind.shape, SPACING_MM, strict=True)])[::-1]
    half_mm[0] /= kind.sides
    warped = grid + np.stack([0.35 / size * noise(5.0) for size in half_mm])
    softness = float(np.mean(SPACING_MM) / half_mm.min())
    image = np.full(shape, 0.40, np.float32)
    for centre, half_axes, degrees, contrast in (*NUCLEI, kind.ventricle):
        half_axes = np.multiply(half_axes, rng.normal(1, 0.08, 3))
        contrast *= rng.uniform(0.6, 1.4)
        image += contrast * _ellipsoid(warped, centre, half_axes, degrees, softness)
    image += _confounders(rng, kind, warped, half_mm, tissue)
    image += 0.010 * (noise(0.8) + noise(1.8)) + rng.uniform(0.01, 0.04) * noise(3.5)
    count = draw_count(rng, kind.mean_count, kind.max_count)
    k = None if kind.slice_index is None else kind.slice_index + MARGIN_VOX
    how = {"contrast": kind.contrast, "slice_index": k}
    lesions, centres = draw_lesions(rng, count, tissue, SPACING_MM, **how)
    image = ndimage.gaussian_filter(image + lesions, 0.5) * (1 + 0.04 * noise(9.0))
    noise_re, noise_im = 0.02 * rng.standard_normal((2, *shape), dtype=np.float32)
    return 1000 * rng.uniform(0.8, 1.2) * np.hypot(image + noise_re, noise_im), roi, centres


def _confounders(rng, kind, grid, half_mm, tissue):
    """Add what a threshold takes for lesions but is not: a sheet, blobs, voids, spikes."""
    x, y, _ = grid
    sheet_mm = (x - 0.76 + 0.15 * y**2) * half_mm[0]
    added = rng.uniform(0.15, 0.25) * np.exp(-0.5 * (sheet_mm / 0.35) ** 2)
    inside = np.argwhere(tissue)
    reach = np.ceil(BLOB_REACH_MM / np.array(SPACING_MM)).astype(int)
    signs = [1] * rng.integers(kind.blobs + 1) + [-1] * rng.integers(kind.voids + 1)
    for sign in signs:
        centre = inside[rng.integers(len(inside))]
        box = tuple(map(slice, np.maximum(centre - reach, 0), centre + reach + 1))
        here = grid[(slice(None), *centre)]
        away_mm = [half_mm[i] * (grid[i][box] - here[i]) for i in range(3)]
        size_mm = rng.uniform(1.6, 2.6) / 1.5
        bump = np.exp(-0.5 * sum(d * d for d in away_mm) / size_mm**2)
        added[box] += sign * rng.uniform(0.15, 0.35) * bump
    for _ in range(rng.integers(kind.spikes // 3, kind.spikes + 1)):
        spike = tuple(inside[rng.integers(len(inside))])
        added[spike] += 2 * rng.uniform(0.15, 0.40)  # the blur leaves half
    return added


def scan_rng(seed, split, i):
    """The generator of scan `i` of a split; it does not depend on how many scans are drawn."""
    return np.random.default_rng([seed, SPLITS.index(split), i])


def raw_volumes(image, roi):
    """Place a raw scan and its region in the world: Volumes with RAS+ axes, the middle at 0 mm."""
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.shape[::-1]) - 1) / 2
    return Volume(image, affine), Volume(roi, affine)


def simulate_cohort(preset, n, seed, n_jobs=1, show=False):
    """Simulate and prepare a cohort of a preset: dict split -> list of LoadedScan.

    n: dict split -> number of scans. Scan i of a split does not depend on how many others are
    drawn, nor on n_jobs, the processes that share the work where there is enough of it. A script
    asks for several only below `if __name__ == "__main__"`: its processes import it. show: with a
    progress bar.
    """
    wanted = [(preset, seed, split, i) for split in n for i in range(n[split])]
    if len(wanted) * np.prod(PRESETS[preset].shape) < WORTH_PROCESSES_VOX:
        n_jobs = 1
    # small products: a BLAS library that splits them across threads is up to ten times slower
    with threadpool_limits(1, user_api="blas"):
        simulated = map_processes(_prepared_scan, wanted, n_jobs)
        if show:
            simulated = progress(simulated, "simulating scans", total=len(wanted))
        scans = iter(list(simulated))
    return {split: list(itertools.islice(scans, n[split])) for split in n}


def _prepared_scan(wanted):
    preset, seed, split, i = wanted
    image, roi, centres_zyx = simulate_scan(preset, scan_rng(seed, split, i))
    image, roi = raw_volumes(image, roi)
    prepared = prepare(image, roi)
    k, slab_mm = PRESETS[preset].slice_index, PRESETS[preset].slab_mm
    centres_zyx = world_to_index(prepared, index_to_world(image, centres_zyx))
    scan = LoadedScan(f"{split}{i:04d}", prepared, len(centres_zyx), centres_zyx, k)
    return scan if slab_mm is None else cut_slab(scan, slab_mm)

"""Simulated scans of one basal ganglia with a known number of lesions at known places.

A scan is the same anatomy in every subject (the scans are registered, paper section 2.1) up to a
small smooth warp, with texture, a bias field, partial volume and Rician noise; its lesions are
bent bright tubes. Bright and dark things that are not lesions (a ventricle, a thin sheet, blobs,
spikes, voids) come in numbers that do not depend on the count, so that nothing but the lesions
tells it. The ventricle fills more than 2 % of the mask: with less, trimming the highest 1 % would
make an image's gain depend on its lesions, and a network could count without looking. The phantom
is ours; the paper's scans are not public.

Intensities are given relative to a full scale of 1 (white matter .40); lengths are in
millimetres.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from weakunet import preprocess
from weakunet.cohort import SPLITS, LoadedScan
from weakunet.volumes import Volume, index_to_world, world_to_index

SPACING_MM = (0.8, 0.49, 0.49)  # z, y, x, as the paper's scans
MARGIN_VOX = 2  # what the raw image shows around the box that preprocessing crops


@dataclass(frozen=True)
class Preset:
    """Size of the prepared scan and what is in it."""

    shape: tuple  # (D, H, W) after preprocessing
    mean_count: float  # of the negative binomial the counts are drawn from
    max_count: int
    blobs: int  # at most so many smooth bright blobs
    spikes: int  # at most so many single bright voxels
    voids: int  # at most so many dark blobs


PRESETS = {
    "tiny": Preset((16, 32, 32), 3.1, 10, blobs=3, spikes=9, voids=2),
    "mid": Preset((20, 40, 40), 4.2, 15, blobs=3, spikes=12, voids=2),
    "standard": Preset((24, 48, 48), 5.0, 20, blobs=4, spikes=16, voids=2),
}

# centre, half axes (x right, y anterior, z superior; the box is -1..1), angle about z, contrast
VENTRICLE = ((-0.46, 0.30, 0.10), (0.21, 0.42, 0.62), -12.0, 0.45)
NUCLEI = (
    ((-0.10, 0.45, 0.15), (0.21, 0.30, 0.50), -12.0, 0.16),  # caudate
    ((0.40, -0.02, 0.00), (0.20, 0.60, 0.55), 12.0, 0.14),  # putamen
    ((0.06, -0.22, -0.10), (0.14, 0.34, 0.32), 12.0, -0.06),  # pallidum
)


def draw_count(rng, mean, largest, dispersion=1.8):
    """Draw a count: negative binomial (variance mean + mean^2 / dispersion), cut at `largest`."""
    return int(min(rng.negative_binomial(dispersion, dispersion / (dispersion + mean)), largest))


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


def draw_lesions(rng, count, inside, spacing_mm, apart_mm=2.5, contrast=(0.24, 0.42)):
    """Draw bent tubes (radius .5-.9 mm, length 1.8-4 mm, round ends) with their middles in a mask.

    Parameters
    ----------
    count : number of lesions wanted
    inside : (D, H, W) bool, where the lesions' middles may lie
    spacing_mm : (z, y, x)
    apart_mm : least distance between two middles
    contrast : range of the lesions' brightness

    Returns
    -------
    added : (D, H, W) float32, what the lesions add to the image; a voxel partly inside gets part
    centres_zyx : (n, 3) float64, the tubes' middles in voxels; n < count where no more find room
    """
    added = np.zeros(inside.shape, np.float32)
    candidates = np.argwhere(inside)
    centres = np.empty((0, 3))
    for _ in range(100 * count):
        if len(centres) == count or not len(candidates):
            break
        centre = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, 3)
        distances_mm = np.linalg.norm((centres - centre) * spacing_mm, axis=1)
        if np.any(distances_mm < apart_mm):
            continue
        centres = np.vstack([centres, centre])
        _add_tube(rng, added, centre, np.asarray(spacing_mm), rng.uniform(*contrast))
    return added, centres


def _add_tube(rng, added, centre_zyx, spacing_mm, contrast):
    """Add one bent tube to `added` in place: where two overlap the brighter one counts."""
    radius, length = rng.uniform(0.5, 0.9), rng.uniform(1.8, 4.0)
    along, across = np.linalg.qr(rng.standard_normal((3, 2)))[0].T  # two orthonormal directions
    t = np.linspace(-1, 1, 9)[:, None]
    bend = rng.uniform(0.0, 0.35)
    path_mm = (length / 2 - radius) * (t * along + bend * t**2 * across)  # through 0 at t = 0
    reach = np.ceil((np.abs(path_mm).max(axis=0) + radius) / spacing_mm).astype(int) + 1
    middle = np.round(centre_zyx).astype(int)
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, added.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    voxel_mm = (np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - centre_zyx) * spacing_mm
    step = voxel_mm[..., None, :] - path_mm
    distance = np.sqrt(np.einsum("...i,...i", step, step).min(axis=-1))
    part = np.clip(0.5 + (radius - distance) / np.mean(spacing_mm), 0, 1)
    added[box] = np.maximum(added[box], contrast * part)


def _ellipsoid(grid, centre, half_axes, degrees, softness):
    """Part of every voxel inside an ellipsoid; `grid` (3, D, H, W): x, y, z."""
    turn = np.deg2rad(degrees)
    x, y, z = (axis - c for axis, c in zip(grid, centre, strict=True))
    a = (np.cos(turn) * x + np.sin(turn) * y) / half_axes[0]
    b = (np.cos(turn) * y - np.sin(turn) * x) / half_axes[1]
    outward = np.sqrt(a * a + b * b + (z / half_axes[2]) ** 2) - 1
    return np.clip(0.5 - outward * min(half_axes) / softness, 0, 1)


@functools.lru_cache(maxsize=4)
def _template(shape):
    """Return all voxels' x, y, z (-1..1 across the prepared box), the region, its tissue."""
    voxels = [np.arange(-MARGIN_VOX, n + MARGIN_VOX, dtype=np.float32) for n in shape]
    axes = [(i + 0.5) * 2 / n - 1 for i, n in zip(voxels, shape, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    grid = np.stack([x, y, z])
    depth = preprocess.DILATION_VOX  # dilating the region by this gives a box of `shape`
    half = [1 - 2 * depth / n for n in reversed(shape)]
    roi = sum((axis / size) ** 4 for axis, size in zip(grid, half, strict=True)) <= 1
    return grid, roi, roi & (_ellipsoid(grid, *VENTRICLE[:3], 0.1) == 0)


def simulate_scan(preset, rng):
    """Simulate one raw scan.

    Parameters
    ----------
    preset : a name in PRESETS
    rng : numpy Generator

    Returns
    -------
    image : (D, H, W) float32 raw intensities, MARGIN_VOX wider on each side than when prepared
    roi : (D, H, W) bool, where lesions are counted
    centres_zyx : (count, 3) float64, the lesions' middles in voxels
    """
    kind = PRESETS[preset]
    grid, roi, tissue = _template(kind.shape)
    shape = roi.shape

    def noise(sd_mm):
        return smooth_noise(rng, shape, SPACING_MM, sd_mm)

    half_mm = np.array([n * step / 2 for n, step in zip(kind.shape, SPACING_MM, strict=True)])[::-1]
    warped = grid + np.stack([0.35 / size * noise(5.0) for size in half_mm])
    softness = float(np.mean(SPACING_MM) / half_mm.min())
    image = np.full(shape, 0.40, np.float32)
    for centre, half_axes, degrees, contrast in (*NUCLEI, VENTRICLE):
        half_axes = np.multiply(half_axes, rng.normal(1, 0.08, 3))
        contrast *= rng.uniform(0.6, 1.4)
        image += contrast * _ellipsoid(warped, centre, half_axes, degrees, softness)
    image += _confounders(rng, kind, warped, half_mm, tissue)
    image += 0.010 * (noise(0.8) + noise(1.8)) + rng.uniform(0.01, 0.04) * noise(3.5)
    count = draw_count(rng, kind.mean_count, kind.max_count)
    lesions, centres = draw_lesions(rng, count, tissue, SPACING_MM)
    image = ndimage.gaussian_filter(image + lesions, 0.5) * (1 + 0.04 * noise(9.0))
    noise_re, noise_im = 0.02 * rng.standard_normal((2, *shape), dtype=np.float32)
    return 1000 * rng.uniform(0.8, 1.2) * np.hypot(image + noise_re, noise_im), roi, centres


def _confounders(rng, kind, grid, half_mm, tissue):
    """Return what looks like lesions to a threshold and is none: a sheet, blobs, voids, spikes."""
    x, y, _ = grid
    sheet_mm = (x - 0.76 + 0.15 * y**2) * half_mm[0]
    added = rng.uniform(0.15, 0.25) * np.exp(-0.5 * (sheet_mm / 0.35) ** 2)
    inside = np.argwhere(tissue)
    signs = [1] * rng.integers(kind.blobs + 1) + [-1] * rng.integers(kind.voids + 1)
    for sign in signs:
        z, y, x = inside[rng.integers(len(inside))]
        away_mm = [half_mm[i] * (grid[i] - grid[i, z, y, x]) for i in range(3)]
        size_mm = rng.uniform(1.6, 2.6) / 1.5
        bump = np.exp(-0.5 * sum(d * d for d in away_mm) / size_mm**2)
        added += sign * rng.uniform(0.15, 0.35) * bump
    for _ in range(rng.integers(kind.spikes // 3, kind.spikes + 1)):
        spike = tuple(inside[rng.integers(len(inside))])
        added[spike] += 2 * rng.uniform(0.15, 0.40)  # the blur leaves half
    return added


def scan_rng(seed, split, i):
    """Return the generator of scan `i` of a split: independent of how many scans are drawn."""
    return np.random.default_rng([seed, SPLITS.index(split), i])


def raw_volumes(image, roi):
    """Place a raw scan and its region in the world: Volumes with RAS+ axes, the middle at 0 mm."""
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.shape[::-1]) - 1) / 2
    return Volume(image, affine), Volume(roi, affine)


def simulate_cohort(preset, n, seed):
    """Simulate and prepare a cohort.

    Parameters
    ----------
    preset : a name in PRESETS
    n : dict split -> number of scans, for example {"train": 400, "val": 100, "test": 30}
    seed : integer; scan i of a split is the same however many others are drawn

    Returns
    -------
    dict split -> list of LoadedScan with intensities in [0, 1] and the preset's shape
    """
    return {split: [_prepared_scan(preset, seed, split, i) for i in range(n[split])] for split in n}


def _prepared_scan(preset, seed, split, i):
    image, roi, centres_zyx = simulate_scan(preset, scan_rng(seed, split, i))
    image, roi = raw_volumes(image, roi)
    prepared = preprocess.prepare(image, roi)
    centres_zyx = world_to_index(prepared, index_to_world(image, centres_zyx))
    return LoadedScan(f"{split}{i:04d}", prepared, len(centres_zyx), centres_zyx)

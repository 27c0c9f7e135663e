"""Simulated lesions: their number, and bent bright tubes apart from each other (ours)."""

import numpy as np
from scipy import ndimage

VISIBLE = 0.5  # fraction of its contrast that a lesion must add to a slice to count in it
APART_MM = 2.5  # least distance between the middles of two lesions


def draw_count(rng, mean, largest, dispersion=1.8):
    """Draw a count: negative binomial (variance mean + mean^2 / dispersion), cut at `largest`."""
    return int(min(rng.negative_binomial(dispersion, dispersion / (dispersion + mean)), largest))


def draw_lesions(rng, count, inside, spacing_mm, contrast=(0.24, 0.42), slice_index=None):
    """Draw `count` bent tubes (radius .5-.9 mm, length 1.8-4 mm, round ends).

    Their middles lie `inside`, a mask (D, H, W); their brightness is in the range `contrast`.

    Returns
    -------
    added : (D, H, W) float32, what the lesions add to the image, with partial volume
    centres_zyx : (n, 3) float64, the tubes' middles in voxels; n < count if there is no more room.
        With slice_index (along z): of the tubes that add at least VISIBLE of their contrast to a
        voxel of that slice, the centre of mass of what they add to it.
    """
    added = np.zeros(inside.shape, np.float32)
    candidates = np.argwhere(inside)
    centres, seen = np.empty((0, 3)), []
    for _ in range(100 * count):
        if len(centres) == count or not len(candidates):
            break
        centre = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, 3)
        distances_mm = np.linalg.norm((centres - centre) * spacing_mm, axis=1)
        if np.any(distances_mm < APART_MM):
            continue
        centres = np.vstack([centres, centre])
        brightness = rng.uniform(*contrast)
        box, part = _draw_tube(rng, centre, np.asarray(spacing_mm), added.shape)
        added[box] = np.maximum(added[box], brightness * part)  # of two that overlap the brighter
        if slice_index is not None and box[0].start <= slice_index < box[0].stop:
            here = part[slice_index - box[0].start]
            if here.max() >= VISIBLE:
                y, x = ndimage.center_of_mass(here)
                seen.append((slice_index, box[1].start + y, box[2].start + x))
    return added, centres if slice_index is None else np.reshape(seen, (-1, 3)).astype(float)


def _draw_tube(rng, centre_zyx, spacing_mm, shape):
    """Draw a bent tube: its box in an array of `shape`, and each voxel's fraction inside."""
    radius, length = rng.uniform(0.5, 0.9), rng.uniform(1.8, 4.0)
    along, across = np.linalg.qr(rng.standard_normal((3, 2)))[0].T  # two orthonormal directions
    t = np.linspace(-1, 1, 9)[:, None]
    bend = rng.uniform(0.0, 0.35)
    path_mm = (length / 2 - radius) * (t * along + bend * t**2 * across)  # through 0 at t = 0
    reach = np.ceil((np.abs(path_mm).max(axis=0) + radius) / spacing_mm).astype(int) + 1
    middle = np.round(centre_zyx).astype(int)
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    voxel_mm = (np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - centre_zyx) * spacing_mm
    step = voxel_mm[..., None, :] - path_mm
    distance = np.sqrt(np.einsum("...i,...i", step, step).min(axis=-1))
    return box, np.clip(0.5 + (radius - distance) / np.mean(spacing_mm), 0, 1)

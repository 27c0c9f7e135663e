"""Prepare scans for the network (paper section 2.1): mask, smooth, crop, trim, rescale.

The region of interest (ROI) is dilated and its border smoothed with a Gaussian of sigma 2 voxels.
The scan is multiplied by this mask, cropped to it, trimmed at its highest 1 % and rescaled:

    m = G_sigma * dilate(roi)        s = image . m        S = min(s, q) / q,    S in [0, 1]

[paper] the steps, sigma and the 1 %. [ours] the dilation by 3 voxels (1.5 sigma, so the ROI's own
border keeps 93 % of its intensity), the crop to the dilated ROI's box, m = 0 where it is below 1 %,
S at least 0.0001 where m > 0, because a voxel of 0 is outside the ROI to the network, and q, the
99th percentile of s over the dilated ROI. While fluid or other bright tissue fills more than 2 % of
the dilated ROI, q does not depend on the number of lesions; with less, the gain of the image would
reveal the count.
"""

import numpy as np
from scipy import ndimage

from weakunet.data.rigid import resample, resample_image, resample_labels, spacing_grid
from weakunet.data.volumes import Volume, crop, index_to_world, require_same_grid, world_to_index
from weakunet.util.cli import InputError

DILATION_VOX = 3
SIGMA_VOX = 2.0
TRIM = 0.01
SMALLEST_WEIGHT = 0.01
LOWEST = 1e-4  # of a prepared voxel in the ROI
STRAY_VOX = 8  # a part of the ROI as small as this is a mistake
SAME_SPACING = 1e-3  # relative: smaller differences are rounding


def without_strays(mask):
    """The mask without its parts of at most STRAY_VOX voxels, unless there is nothing else.

    Dilated and smoothed, a voxel marked by mistake would be a bright spot that looks like a lesion.
    """
    parts, n_parts = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.bincount(parts.ravel(), minlength=n_parts + 1) > STRAY_VOX
    kept[0] = False
    return kept[parts] if kept.any() else mask


def crop_box(roi, margins_vox=(DILATION_VOX,) * 3):
    """The ROI's box with margins, cut at the array's ends: three slices. The ROI is not empty."""
    box = ndimage.find_objects((roi > 0).astype(np.uint8))[0]
    return tuple(
        slice(max(0, side.start - margin), min(n, side.stop + margin))
        for side, n, margin in zip(box, roi.shape, margins_vox, strict=True)
    )


def dilate_mask(mask, radius_vox=DILATION_VOX):
    """All voxels at most `radius_vox` away from the mask, in voxels along every axis (a ball)."""
    return ndimage.distance_transform_edt(~mask) <= radius_vox


def smooth_border(mask, sigma_vox=SIGMA_VOX):
    """Weights in [0, 1], 1/2 on a flat border, 0 below 1 %; beyond the array the mask is 0."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma_vox, mode="constant")
    weight[weight < SMALLEST_WEIGHT] = 0
    return np.clip(weight, 0, 1)


def invert_contrast(image, inside):
    """1 - image / p, clipped to [0, p], p its 99th percentile inside: makes T1 look like T2."""
    high = np.percentile(image[inside], 99)
    return 1 - np.clip(image, 0, high) / high


def trim_highest(image, inside, fraction=TRIM):
    """Clip `image` from above at the (1 - fraction) quantile of its voxels inside the mask."""
    return np.minimum(image, np.quantile(image[inside], 1 - fraction).astype(image.dtype))


def preparation_steps(image, roi, invert=False):
    """All steps on cropped arrays, in order: name -> (D, H, W). The last is in [0, 1].

    Negative intensities are first shifted so that the lowest inside the dilated ROI is 0.
    """
    dilated = dilate_mask(roi > 0)
    steps = {"scan": image, "ROI": roi > 0, "dilated": dilated}
    image = image - min(0, image[dilated].min())
    if invert:
        image = steps["inverted"] = invert_contrast(image, dilated)
    steps["border smoothed"] = smooth_border(dilated)
    steps["masked"] = image * steps["border smoothed"]
    steps["trimmed"] = trim_highest(steps["masked"], dilated)
    rescaled = np.clip(steps["trimmed"] / steps["trimmed"].max(), LOWEST, 1)
    steps["rescaled"] = rescaled * (steps["border smoothed"] > 0)
    return steps


def prepare(volume, roi, invert=False, image_path="image", roi_path="ROI", spacing_mm=None):
    """Prepare a raw scan: a Volume cropped to `crop_box(roi.array)`, in its place in the world.

    volume, roi: on the same grid; the ROI is where `roi` is above 0. invert: turn dark into bright
    first, for T1-weighted scans. spacing_mm: (z, y, x), resample to voxels of this size first.
    Raises InputError, naming the paths: different grids, an empty ROI, a constant image.
    """
    require_same_grid(volume, image_path, roi, roi_path)
    if not (roi.array > 0).any():
        raise InputError(f"{roi_path}: empty ROI, no voxel is above 0; check that it is the mask")
    if spacing_mm is not None and not np.allclose(spacing_mm, volume.spacing_mm, rtol=SAME_SPACING):
        volume, roi = change_spacing(volume, roi, spacing_mm, image_path)
        if not roi.array.any():
            raise InputError(f"{roi_path}: nothing is left of the ROI in voxels of {spacing_mm} mm")
    box = crop_box(roi.array)
    image, mask = volume.array[box], roi.array[box] > 0
    inside = image[dilate_mask(mask)]
    if inside.min() == np.quantile(inside, 1 - TRIM):
        raise InputError(
            f"{image_path}: 99 % of the ROI has the same intensity ({inside.min():g}); "
            "check that this is the scan and that the ROI lies inside the head"
        )
    prepared = preparation_steps(image, mask, invert)["rescaled"]
    return Volume(np.ascontiguousarray(prepared, np.float32), crop(volume, box).affine)


def change_spacing(volume, roi, spacing_mm, path="image"):
    """Resample scan and ROI to voxels of `spacing_mm` (z, y, x), near the ROI only.

    The scan by cubic splines, the ROI by the nearest neighbour; axes keep their directions.
    """
    ratio = np.maximum(1, np.array(spacing_mm) / volume.spacing_mm)
    box = crop_box(roi.array, np.ceil((DILATION_VOX + 3) * ratio).astype(int) + 3)
    volume, roi = crop(volume, box), crop(roi, box)
    grid = spacing_grid(volume, spacing_mm, path)
    mask = Volume(roi.array > 0, roi.affine)
    return (
        Volume(resample_image(volume, grid, 3), grid.affine),
        Volume(resample(mask, grid, 0), grid.affine),
    )


def crop_corner(part, whole):
    """The voxel (z, y, x) of the Volume `whole` where its crop `part` begins, or None."""
    step = np.linalg.inv(whole.affine) @ part.affine
    corner = np.round(step[2::-1, 3])
    same = np.allclose(step[:3, :3], np.eye(3), atol=1e-5)
    return corner.astype(int) if same and np.allclose(step[2::-1, 3], corner, atol=1e-3) else None


def put_back(array, part, whole, fill):
    """Move `array` from the grid of the Volume `part` to that of `whole`, with `fill` around it.

    The voxels of a crop return to where they were. Where the spacing was changed, labels (whole
    numbers) go by the nearest neighbour and everything else is interpolated linearly.
    """
    corner = crop_corner(part, whole)
    if corner is None and array.dtype.kind in "iu":
        return resample_labels(Volume(array, part.affine), whole)
    if corner is None:
        return resample(Volume(array, part.affine), whole, 1, fill=fill)
    full = np.full(whole.array.shape, fill, array.dtype)
    full[tuple(slice(i, i + n) for i, n in zip(corner, array.shape, strict=True))] = array
    return full


def places_in(points_zyx, part, whole):
    """Voxel indices (n, 3) in `part` as indices in `whole`, the Volume it was prepared from."""
    corner = crop_corner(part, whole)
    if corner is None:
        return world_to_index(whole, index_to_world(part, points_zyx))
    return points_zyx + corner

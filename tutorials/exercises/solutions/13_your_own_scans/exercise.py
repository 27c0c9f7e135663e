import numpy as np
from scipy import ndimage

from weakunet.data.rigid import move_points


def crop(image, affine, region, margin):
    ijk = np.argwhere(region)
    first = np.maximum(ijk.min(axis=0) - margin, 0)
    end = np.minimum(ijk.max(axis=0) + 1 + margin, image.shape)
    cropped_affine = affine.copy()
    cropped_affine[:3, 3] += affine[:3, :3] @ first
    return image[tuple(map(slice, first, end))], cropped_affine


def to_scan(points_ijk, affine, to_template, scan_affine):
    template_mm = move_points(affine, points_ijk)
    scan_mm = move_points(np.linalg.inv(to_template), template_mm)
    return scan_mm, move_points(np.linalg.inv(scan_affine), scan_mm)


def carry_labels(labels, labels_affine, shape, affine):
    centres_mm = move_points(affine, np.indices(shape).reshape(3, -1).T)
    there = np.round(move_points(np.linalg.inv(labels_affine), centres_mm)).astype(int)
    inside = ((there >= 0) & (there < labels.shape)).all(axis=1)
    carried = np.zeros(len(there), labels.dtype)
    carried[inside] = labels[tuple(there[inside].T)]
    return carried.reshape(shape)


def count_lesions(mask, region, k=None):
    if k is not None:
        mask, region = mask[:, :, k : k + 1], region[:, :, k : k + 1]
    components, n = ndimage.label(mask, np.ones((3, 3, 3)))
    centres = ndimage.center_of_mass(mask, components, range(1, n + 1))
    voxels = np.round(centres).astype(int).reshape(-1, 3)
    return int(region[tuple(voxels.T)].sum())

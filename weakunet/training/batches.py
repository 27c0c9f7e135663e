"""Scans of a cohort as arrays of one shape, on the device, and batches of them."""

import dataclasses

import numpy as np

from weakunet.data.slices import front_padding
from weakunet.data.volumes import Volume, require_spacing
from weakunet.gpu import backend


def common_spacing(scans):
    """The voxel size of the first scan; InputError where another scan's is different."""
    for scan in scans:
        require_spacing(scan.volume, scans[0].volume.spacing_mm, scan.subject)
    return scans[0].volume.spacing_mm


def common_shape(volumes, multiple):
    """The smallest (D, H, W) that holds each of the arrays and divides by `multiple`."""
    largest = np.max([volume.shape for volume in volumes], axis=0)
    return tuple(int(size) for size in -(-largest // multiple) * multiple)


def pad_together(volumes, shape):
    """Stack arrays (D, H, W) of any sizes as (n, *shape), zeros after each."""
    stacked = np.zeros((len(volumes), *shape), np.float32)
    for place, volume in zip(stacked, volumes, strict=True):
        place[tuple(slice(0, size) for size in volume.shape)] = volume
    return stacked


def place_slices(model, scans):
    """The scans, each with the slice that was counted, or is all there is, where predict puts it.

    Training moves a scan within its slices only, so along z the grids would never vary.
    """
    placed = []
    for scan in scans:
        array, k = scan.volume.array, scan.slice_index
        if model.settings["region"] and (k is not None or len(array) == 1):
            front = int(front_padding(array, model.period, k)[0])
            volume = Volume(np.pad(array, ((front, 0), (0, 0), (0, 0))), scan.volume.affine)
            centres = None if scan.centres_zyx is None else scan.centres_zyx + (front, 0, 0)
            k = None if k is None else k + front
            scan = dataclasses.replace(scan, volume=volume, centres_zyx=centres, slice_index=k)
        placed.append(scan)
    return placed


def slabs_of(scans, volumes):
    """(n, 1, D, 1, 1) bool, the slice of each scan that was counted, held where `volumes` are."""
    if scans[0].slice_index is None:
        return None
    slices = np.array([scan.slice_index for scan in scans])
    counted = (np.arange(volumes.shape[1]) == slices[:, None])[:, None, :, None, None]
    return backend.to_device(counted, "cuda" if backend.is_cuda(volumes) else "cpu")


def slabs_of_batch(model, slabs, chosen):
    """Where the chosen scans were counted, on the model's device; None: everywhere."""
    return None if slabs is None else backend.to_device(slabs[chosen], model.device)


def as_batch(model, volumes):
    """Volumes (n, D, H, W), cached anywhere in any precision, as (n, 1, D, H, W) for the model."""
    return backend.to_device(volumes, model.device).astype(np.float32, copy=False)[:, None]

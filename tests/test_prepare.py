"""Section 2.1 step by step, each against scipy or by hand."""

import numpy as np
import pytest
from scipy import ndimage

from weakunet.data.cohort import Scan
from weakunet.data.load import read_raw
from weakunet.data.prepare import (
    change_spacing,
    crop_box,
    dilate_mask,
    invert_contrast,
    prepare,
    put_back,
    smooth_border,
    without_strays,
)
from weakunet.data.volumes import Volume, index_to_world, world_to_index, write_volume
from weakunet.util.cli import InputError

AFFINE = np.array([[0.5, 0, 0, 40], [0, 0.6, 0, -30], [0, 0, 0.8, 10], [0, 0, 0, 1]])


def raw_scan(seed=0, shape=(20, 22, 24)):
    """A scan and an ROI in its middle: a block of 4 x 6 x 8 voxels (z, y, x)."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(100, 1000, shape).astype(np.float32)
    roi = np.zeros(shape, np.float32)
    roi[7:11, 8:14, 9:17] = 2  # its box, dilated: [4:14, 5:17, 6:20]
    return Volume(image, AFFINE), Volume(roi, AFFINE)


def test_smoothed_border_is_a_gaussian_without_its_faint_end():
    mask = np.zeros((17, 17, 17), bool)
    mask[5:12, 5:12, 5:12] = True
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    profile = np.convolve(mask[8, 8], kernel / kernel.sum(), "same")
    expected = np.einsum("i,j,k", profile, profile, profile)
    expected[expected < 0.01] = 0
    np.testing.assert_allclose(smooth_border(mask), expected, atol=1e-6)


def test_inverting_turns_dark_into_bright():
    image = np.arange(0, 101, dtype=np.float32).reshape(1, 1, 101)
    inverted = invert_contrast(image, np.ones(image.shape, bool))
    np.testing.assert_allclose(inverted[0, 0, [0, 33, 99, 100]], [1, 1 - 33 / 99, 0, 0], atol=1e-6)


def test_prepared_scan_is_the_steps_done_one_by_one():
    volume, roi = raw_scan()
    prepared = prepare(volume, roi)
    assert np.array_equal(volume.array, raw_scan()[0].array)  # the argument is left alone
    # on the whole scan, by other functions, cropped last
    z, y, x = np.indices((7, 7, 7)) - 3
    dilated = ndimage.binary_dilation(roi.array > 0, z**2 + y**2 + x**2 <= 9)
    weight = dilated.astype(float)
    for axis in range(3):
        weight = ndimage.gaussian_filter1d(weight, 2.0, axis, mode="constant")
    masked = volume.array * np.where(weight < 0.01, 0, weight)
    highest = np.percentile(masked[dilated], 99)
    expected = (np.minimum(masked, highest) / highest)[4:14, 5:17, 6:20]
    assert prepared.array.dtype == np.float32
    np.testing.assert_allclose(prepared.array, expected, atol=1e-6)
    assert prepared.array.max() == 1 and prepared.array.min() >= 0
    # the same voxel is at the same place in the world
    np.testing.assert_allclose(
        index_to_world(prepared, [[1, 2, 3]]), index_to_world(volume, [[5, 7, 9]]), atol=1e-12
    )


def test_lesions_do_not_change_the_gain_where_fluid_fills_more_than_the_trimmed_fraction():
    volume, roi = raw_scan()
    volume.array[:] = 400
    volume.array[7:11, 8:14, 9:11] = 1000  # 48 of 1024 dilated voxels
    few = prepare(volume, roi).array
    volume.array[8:10, 10:13, 12:16] = 700
    many = prepare(volume, roi).array
    same = (roi.array[4:14, 5:17, 6:20] == 0) & (few > 0)
    assert same.sum() > 500
    np.testing.assert_allclose(many[same], few[same], atol=1e-6)
    assert many[5, 6, 7] > 1.5 * few[5, 6, 7]


def test_roi_at_the_edge_and_odd_shapes_are_cropped_to_the_scan():
    volume, roi = raw_scan()
    roi.array[:] = 0
    roi.array[0, 0, 23] = 1
    box = crop_box(roi.array)
    assert box == (slice(0, 4), slice(0, 4), slice(20, 24))
    prepared = prepare(volume, roi)
    assert prepared.array.shape == (4, 4, 4)
    full = put_back(prepared.array, prepared, volume, -1)
    assert np.array_equal(full[box], prepared.array) and (full == -1).sum() == full.size - 64


def test_negative_intensities_are_shifted():
    volume, roi = raw_scan()
    shifted = Volume(volume.array - 600, volume.affine)
    lowest = volume.array[dilate_mask(roi.array > 0)].min()
    expected = prepare(Volume(volume.array - lowest, volume.affine), roi)
    np.testing.assert_allclose(prepare(shifted, roi).array, expected.array, atol=1e-6)


@pytest.mark.parametrize("invert", [False, True])
def test_only_what_is_outside_the_roi_becomes_0(invert):
    """The inverted brightest 1 % and dark voxels, too: to the network a 0 is outside."""
    volume, roi = raw_scan()
    volume.array[8:10, 9:12, 10:13] = 0
    roi.array[7, 8, 23] = 1  # so that the box holds voxels outside
    weight = smooth_border(dilate_mask(roi.array > 0))[crop_box(roi.array)]
    assert 0 < (weight == 0).sum() < weight.size / 2
    assert np.array_equal(prepare(volume, roi, invert).array > 0, weight > 0)


def test_empty_roi_other_grid_and_constant_scan_are_refused():
    volume, roi = raw_scan()
    with pytest.raises(InputError, match="^r.nii: empty ROI"):
        prepare(volume, Volume(0 * roi.array, AFFINE), False, "i.nii", "r.nii")
    moved = AFFINE.copy()
    moved[2, 3] += 1
    with pytest.raises(InputError, match="^r.nii: not on the grid of i.nii"):
        prepare(volume, Volume(roi.array, moved), False, "i.nii", "r.nii")
    with pytest.raises(InputError, match="^i.nii: 99 % of the ROI"):
        prepare(Volume(0 * volume.array, AFFINE), roi, True, "i.nii", "r.nii")


def test_other_spacing_keeps_the_world_the_mask_and_the_intensities():
    z, y, x = np.indices((20, 22, 24), np.float32)
    ramp = Volume(100 + 10 * z + 4 * y + 2 * x, AFFINE)  # linear: splines reproduce it
    mask = Volume(raw_scan()[1].array > 0, AFFINE)
    for spacing_mm in ((0.4, 0.3, 0.35), (1.6, 0.9, 1.1)):
        image, roi = change_spacing(ramp, mask, spacing_mm)
        np.testing.assert_allclose(image.spacing_mm, spacing_mm)
        assert image.array.shape == roi.array.shape and roi.array.dtype == bool
        assert roi.array.sum() * roi.voxel_mm3 == pytest.approx(192 * mask.voxel_mm3, rel=0.2)
        inside = np.argwhere(roi.array)
        z, y, x = world_to_index(ramp, index_to_world(image, inside)).T
        np.testing.assert_allclose(image.array[roi.array], 100 + 10 * z + 4 * y + 2 * x, atol=0.02)
        middle = index_to_world(roi, inside).mean(axis=0)
        expected = index_to_world(mask, np.argwhere(mask.array)).mean(axis=0)
        np.testing.assert_allclose(middle, expected, atol=max(spacing_mm) / 2)


def test_larger_voxels_hold_the_mean_of_what_was_there():
    stripes = np.zeros((40, 40, 40), np.float32)
    stripes[::2] = 1
    volume, mask = Volume(stripes, np.eye(4)), Volume(np.ones(stripes.shape, bool), np.eye(4))
    image, _ = change_spacing(volume, mask, (3, 1, 1))
    assert abs(image.array[2:-2] - 0.5).max() < 0.05
    edge = index_to_world(image, [[-0.5, -0.5, -0.5]])  # the box begins where it began
    np.testing.assert_allclose(edge, [[-0.5, -0.5, -0.5]], atol=1e-9)


def test_stray_voxels_of_the_roi_are_left_out_with_a_note(tmp_path, capsys):
    mask = np.zeros((20, 20, 20), np.float32)
    mask[3:9, 4:9, 5:9] = 1
    strays = mask.copy()
    strays[17, 16, 17] = strays[16, 16, 16] = 1
    image = Volume(np.ones_like(mask), np.eye(4))
    write_volume(tmp_path / "scan.nii", image.array, image)
    write_volume(tmp_path / "roi.nii", strays, image)
    _, roi = read_raw(Scan("s", tmp_path / "scan.nii", roi=tmp_path / "roi.nii"))
    np.testing.assert_array_equal(roi.array, mask > 0)
    assert "2 stray voxels" in capsys.readouterr().err
    alone = np.zeros(mask.shape, bool)
    alone[9, 9, 9] = True  # a small ROI that is all there is stays
    np.testing.assert_array_equal(without_strays(alone), alone)

"""Counts of one axial slice: found by its world z, cut out, and refused outside the image."""

import numpy as np
import pytest
from helpers import moved, save

from weakunet.data.cohort import LoadedScan, Scan
from weakunet.data.load import load_scan
from weakunet.data.slices import cut_slab, find_slice, in_slice
from weakunet.data.volumes import Volume, index_to_world
from weakunet.util.cli import InputError

AFFINE = np.array([[0.5, 0, 0, 9], [0, 0.5, 0, -4], [0, 0, 0.8, 2], [0, 0, 0, 1]])


def volume():
    return Volume(np.random.default_rng(0).random((5, 6, 7)).astype(np.float32), AFFINE)


@pytest.mark.parametrize("z_mm, k", [(2, 0), (2.39, 0), (2.4, 1), (4.4, 3), (5.59, 4), (1.61, 0)])
def test_slice_is_the_nearest_and_half_way_the_upper_one(z_mm, k):
    assert find_slice(volume(), z_mm) == k


def test_slice_of_an_oblique_scan_is_the_one_at_its_middle():
    tilted = moved((20, 0, 0), (0, 0, 50))
    tilted[:3, 3] -= tilted[:3, :3] @ (3, 2.5, 2)  # the middle voxel (x, y, z) is at z = 50 mm
    scan = Volume(np.zeros((5, 6, 7), np.float32), tilted)
    assert find_slice(scan, 50) == 2
    assert find_slice(scan, 50 + tilted[2, 2]) == 3  # one slice up, at the middle of that slice


@pytest.mark.parametrize("z_mm", [1.59, 5.61, 1e9])
def test_slice_outside_the_image_is_refused_with_the_file_and_its_reach(z_mm):
    with pytest.raises(InputError, match=r"^s.nii: slice_z_mm .* from 2.0 to 5.2 mm"):
        find_slice(volume(), z_mm, "s.nii")


def test_scan_is_cut_to_its_slice_with_the_lesions_marked_there():
    whole = volume()
    centres = np.array([(2.5, 1, 1), (3, 2, 4), (3.51, 3, 3), (0, 0, 0), (3.2, 5, 6)])
    scan = LoadedScan("s", whole, 3, centres, slice_index=3)
    heatmap = np.random.default_rng(1).random((5, 6, 7))
    cut, cut_map = in_slice(scan, heatmap)
    assert np.array_equal(cut.volume.array, whole.array[3:4])
    assert np.array_equal(cut_map, heatmap[3:4])
    np.testing.assert_allclose(cut.centres_zyx, [(-0.5, 1, 1), (0, 2, 4), (0.2, 5, 6)])
    before = index_to_world(whole, centres[[0, 1, 4]])
    np.testing.assert_allclose(index_to_world(cut.volume, cut.centres_zyx), before)
    assert (cut.count, scan.volume.array.shape, len(scan.centres_zyx)) == (3, (5, 6, 7), 5)
    assert in_slice(LoadedScan("s", whole, 3)) == [LoadedScan("s", whole, 3)]


@pytest.mark.parametrize(
    "k, slab_mm, first, stop", [(2, 0, 2, 3), (2, 0.8, 1, 4), (2, 1.59, 1, 4), (4, 1.6, 2, 5)]
)
def test_slab_is_what_is_close_to_the_slice_in_its_place(k, slab_mm, first, stop):
    whole = volume()
    cut = cut_slab(LoadedScan("s", whole, 1, np.array([[k, 1.0, 2.0]]), k), slab_mm)
    slab = cut.volume
    assert cut.slice_index == cut.centres_zyx[0, 0] == k - first
    assert np.array_equal(slab.array, whole.array[first:stop])
    np.testing.assert_allclose(
        index_to_world(slab, [(0, 1, 2)]), index_to_world(whole, [(first, 1, 2)])
    )


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "PIL"])
def test_slice_is_loaded_by_world_height_however_the_scan_is_stored(tmp_path, codes):
    xyz = np.random.default_rng(0).random((7, 6, 5)).astype(np.float32)
    save(tmp_path / "s.nii", xyz, AFFINE, codes)
    loaded = load_scan(Scan("s", tmp_path / "s.nii", 2, slice_z_mm=4.5))
    assert loaded.slice_index == 3
    np.testing.assert_allclose(loaded.volume.array[3], xyz[:, :, 3].T)
    assert load_scan(Scan("s", tmp_path / "s.nii", 2)).slice_index is None
    with pytest.raises(InputError, match="s.nii: slice_z_mm -20 lies outside"):
        load_scan(Scan("s", tmp_path / "s.nii", 2, slice_z_mm=-20))

"""Counts of one axial slice: found by its world z, cut out, and refused outside the image."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt

from weakunet.data.cohort import LoadedScan, Scan, read_cohort, write_cohort
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
    turn, centre = np.deg2rad(20), np.array([3, 2.5, 2])  # (x, y, z) in voxels
    tilted = np.eye(4)
    tilted[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    tilted[:3, 3] = (0, 0, 50) - tilted[:3, :3] @ centre
    scan = Volume(np.zeros((5, 6, 7), np.float32), tilted)
    assert find_slice(scan, 50) == 2
    assert find_slice(scan, 50 + np.cos(turn)) == 3  # one slice up, at the middle of that slice


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
    image = nibabel.Nifti1Image(xyz, AFFINE).as_reoriented(axcodes2ornt(codes))
    nibabel.save(image, tmp_path / "s.nii")
    loaded = load_scan(Scan("s", tmp_path / "s.nii", 2, slice_z_mm=4.5))
    assert loaded.slice_index == 3
    np.testing.assert_allclose(loaded.volume.array[3], xyz[:, :, 3].T)
    assert load_scan(Scan("s", tmp_path / "s.nii", 2)).slice_index is None
    with pytest.raises(InputError, match="s.nii: slice_z_mm -20 lies outside"):
        load_scan(Scan("s", tmp_path / "s.nii", 2, slice_z_mm=-20))


def test_column_is_written_and_read_back(tmp_path):
    scans = [Scan("a", Path("a.nii"), 1, slice_z_mm=-3.25), Scan("b", Path("b.nii"), slice_z_mm=7)]
    write_cohort(tmp_path / "cohort.csv", scans)
    header = (tmp_path / "cohort.csv").read_text().splitlines()[0]
    assert header == "subject,image,count,slice_z_mm"
    assert [scan.slice_z_mm for scan in read_cohort(tmp_path / "cohort.csv")] == [-3.25, 7]


@pytest.mark.parametrize(
    "cells, problem",
    [
        (("here", ""), "line 2: slice_z_mm 'here' is not a number"),
        (("inf", "1"), "line 2: slice_z_mm 'inf' is not a number"),
        (("1", "inf"), "line 3: slice_z_mm 'inf' is not a number"),
        (("1", ""), "subject 'b' has no slice_z_mm but others do"),
    ],
)
def test_bad_column_is_refused(tmp_path, cells, problem):
    table = tmp_path / "cohort.csv"
    rows = zip("ab", cells, strict=True)
    lines = [f"{name},{name}.nii,1,{cell}\n" for name, cell in rows]
    table.write_text("subject,image,count,slice_z_mm\n" + "".join(lines))
    with pytest.raises(InputError) as caught:
        read_cohort(table)
    assert str(caught.value).startswith(f"{table}: {problem}")

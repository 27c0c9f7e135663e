"""Masks to counts: components by hand and by scikit-image, raters, regions, one slice, VALDO."""

import counts_from_masks
import numpy as np
import pytest
from helpers import exit_code, refusal, rows, save
from skimage.measure import label, regionprops

from weakunet.data.cohort import read_centres, read_cohort
from weakunet.data.volumes import Volume

# the file's axes are (-y, x, z), its voxels 2 x 0.5 x 3 mm
AFFINE = np.array([[0, 0.5, 0, -4.0], [-2, 0, 0, 7], [0, 0, 3, 10], [0, 0, 0, 1]])
VOXEL_MM3 = 3.0
SHAPE = (9, 10, 8)


def to_mm(*voxel):
    return (AFFINE @ [*voxel, 1])[:3]


def write(path, array, affine=AFFINE):
    save(path, np.asarray(array, np.float32), affine)


def mask(*voxels, shape=SHAPE):
    array = np.zeros(shape, np.float32)
    for voxel in voxels:
        array[voxel] = 1
    return array


def arguments(folder, *more):
    patterns = ["--masks", f"{folder}/masks/{{subject}}_r*.nii"]
    patterns += ["--images", f"{folder}/scans/{{subject}}.nii"]
    return [*patterns, "--out", folder / "out", "--jobs", "1", *more]


def run(folder, *more):
    """Run on `folder`'s masks and scans; return {subject: row of counts.csv} and the cohort."""
    assert exit_code(counts_from_masks.main, *arguments(folder, *more)) == 0
    table, cohort = counted(folder / "out"), read_cohort(folder / "out" / "cohort.csv")
    return table, {scan.subject: scan for scan in cohort}


def counted(out):
    return {row["subject"]: row for row in rows(out / "counts.csv")}


def sorted_points(points):
    points = np.asarray(points, float).reshape(-1, 3)
    return points[np.lexsort(points.T)]


def test_components_that_touch_at_a_corner_are_one_and_centres_are_in_world_mm(tmp_path):
    write(tmp_path / "scans/a.nii", np.ones(SHAPE))
    write(tmp_path / "scans/none.nii", np.ones(SHAPE))
    write(tmp_path / "masks/none_r1.nii", mask())
    write(tmp_path / "masks/a_r1.nii", mask((1, 1, 1), (2, 2, 2), (5, 5, 5), (5, 6, 5), (5, 8, 5)))
    table, cohort = run(tmp_path)
    assert {name: scan.count for name, scan in cohort.items()} == {"a": 3, "none": 0}
    expected = [to_mm(1.5, 1.5, 1.5), to_mm(5, 5.5, 5), to_mm(5, 8, 5)]
    found = read_centres(cohort["a"].centres)
    np.testing.assert_allclose(sorted_points(found), sorted_points(expected), atol=1e-3)
    assert read_centres(cohort["none"].centres).shape == (0, 3)
    assert table["a"]["volume_mm3"] == f"{5 * VOXEL_MM3:.3f}"
    assert table["none"]["count"] == "0" and table["none"]["count_of_each_rater"] == "0"


def test_parts_join_to_the_tables_of_one_run(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "abcd":
        write(tmp_path / f"scans/{name}.nii", np.ones(SHAPE))
        write(tmp_path / f"masks/{name}_r1.nii", rng.random(SHAPE) < 0.05)
    whole = run(tmp_path)[0]
    for path in (tmp_path / "out").glob("*.csv"):
        path.unlink()
    for k in (1, 2, 3):
        with pytest.raises(FileNotFoundError):  # a part leaves the whole folder's table alone
            run(tmp_path, "--part", f"{k}/3")
    table, cohort = run(tmp_path)
    assert table == whole and {scan.split for scan in cohort.values()} == {"train", "val", "test"}
    assert [len(read_centres(cohort[name].centres)) for name in "abcd"] == [
        int(table[name]["count"]) for name in "abcd"
    ]
    write(tmp_path / "masks/b_r1.nii", mask((1, 1, 1)))
    assert run(tmp_path)[0]["b"]["count"] == "1"


def test_random_masks_agree_with_scikit_image(tmp_path):
    rng = np.random.default_rng(3)
    array = rng.random((24, 20, 16)) < 0.04
    write(tmp_path / "scans/a.nii", np.ones(array.shape))
    write(tmp_path / "masks/a_r1.nii", array)
    roi = np.zeros(array.shape)
    roi[4:16, 3:15, 2:] = 1
    write(tmp_path / "rois/a.nii", roi)
    regions = regionprops(label(array, connectivity=3))
    large = [region for region in regions if region.num_pixels >= 2]
    inside = [
        region.centroid
        for region in large
        if roi[tuple(int(np.floor(c + 0.5)) for c in region.centroid)]
    ]
    assert 10 < len(inside) < len(large) < len(regions)
    rois = ["--rois", f"{tmp_path}/rois/{{subject}}.nii"]
    table, cohort = run(tmp_path, *rois, "--min-mm3", 2 * VOXEL_MM3)
    row = table["a"]
    assert int(row["n_small"]) == len(regions) - len(large)
    # a middle half way between two voxels goes up along the world's axes, one of which is flipped
    halves = sum((np.array(region.centroid) % 1 == 0.5).any() for region in large)
    assert abs(cohort["a"].count - len(inside)) <= halves
    assert int(row["n_outside_roi"]) + cohort["a"].count == len(large)
    assert cohort["a"].roi.name == "a.nii"
    middles = {tuple(np.round(to_mm(*region.centroid), 2)) for region in large}
    found = {tuple(np.round(centre, 2)) for centre in read_centres(cohort["a"].centres)}
    assert len(found - middles) == 0 and len(found) == cohort["a"].count


def test_a_lesion_of_exactly_the_smallest_volume_counts():
    three = Volume(mask((1, 1, 1), (1, 1, 2), (5, 5, 5)), np.diag([1.0, 1, 1, 1]))
    for min_mm3, count, n_small in ((1, 2, 0), (2, 1, 1), (2.1, 0, 2)):
        result = counts_from_masks.count_lesions(three, min_mm3=min_mm3)
        assert (len(result[0]), result[2]) == (count, n_small)


def test_raters_are_joined_by_the_fraction_that_agrees(tmp_path):
    write(tmp_path / "scans/a.nii", np.ones(SHAPE))
    both, first, second = (1, 1, 1), (4, 4, 4), (7, 7, 7)
    write(tmp_path / "masks/a_r1.nii", mask(both, first))
    write(tmp_path / "masks/a_r2.nii", mask(both, second, (7, 1, 1)))
    for agreement, count in ((0.5, 4), (0.51, 1), (1, 1)):
        table, cohort = run(tmp_path, "--agreement", agreement)
        assert cohort["a"].count == count
        assert table["a"]["count_of_each_rater"] == "2 3"
    write(tmp_path / "masks/a_r3.nii", mask(both, second))
    assert run(tmp_path)[1]["a"].count == 2  # two of three
    assert run(tmp_path, "--agreement", 2 / 3)[1]["a"].count == 2


def test_one_slice_is_counted_with_its_own_components(tmp_path):
    write(tmp_path / "scans/a.nii", np.ones(SHAPE))
    # in slice 4 two lesions, joined only through slice 5; in slice 2 another
    joined = [(2, 2, 4), (3, 3, 5), (4, 4, 4)]
    write(tmp_path / "masks/a_r1.nii", mask(*joined, (7, 7, 2)))
    write(tmp_path / "rois/a.nii", np.ones(SHAPE))
    assert run(tmp_path)[1]["a"].count == 2
    rois = ["--rois", f"{tmp_path}/rois/{{subject}}.nii"]
    z_mm = to_mm(0, 0, 4)[2]
    _, cohort = run(tmp_path, "--slice-z-mm", z_mm + 1.4, *rois)
    assert cohort["a"].count == 2 and cohort["a"].slice_z_mm == pytest.approx(z_mm + 1.4)
    expected = [to_mm(2, 2, 4), to_mm(4, 4, 4)]
    found = sorted_points(read_centres(cohort["a"].centres))
    np.testing.assert_allclose(found, sorted_points(expected), atol=1e-3)


def test_valdo_layout_takes_both_raters_and_names_who_has_no_mask(tmp_path, capsys):
    for subject in ("sub-101", "sub-102", "sub-201"):
        stem = f"Task1/{subject}/{subject}_space-T1_desc-"
        for contrast in ("T1", "T2", "FLAIR"):
            write(tmp_path / f"{stem}masked_{contrast}.nii.gz", np.ones(SHAPE))
        for rater in (1, 2) if subject != "sub-201" else ():
            lesions = mask((1, 1, 1), (2 * rater, 5, 5)) * 0.9
            write(tmp_path / f"{stem}Rater{rater}_PVSSeg.nii.gz", lesions)
    start = f"{tmp_path}/Task1/{{subject}}/{{subject}}_space-T1_desc-"
    options = ["--masks", f"{start}Rater*_PVSSeg.nii.gz", "--jobs", "2"]
    options += ["--images", f"{start}masked_T2.nii.gz", "--out", tmp_path / "out"]
    assert exit_code(counts_from_masks.main, *options) == 0
    cohort = read_cohort(tmp_path / "out" / "cohort.csv")
    assert [(scan.subject, scan.count) for scan in cohort] == [("sub-101", 3), ("sub-102", 3)]
    assert counted(tmp_path / "out")["sub-101"]["count_of_each_rater"] == "2 2"
    assert all(scan.image.name.endswith("masked_T2.nii.gz") for scan in cohort)
    assert "left out: sub-201: no count for the scan" in capsys.readouterr().out


def test_what_cannot_be_counted_is_named_and_the_others_are_written(tmp_path, capsys):
    for name in ("good", "scan", "grid", "empty", "noroi"):
        write(tmp_path / f"scans/{name}.nii", np.ones(SHAPE))
        write(tmp_path / f"rois/{name}.nii", np.ones(SHAPE))
        write(tmp_path / f"masks/{name}_r1.nii", mask((1, 1, 1)))
    write(tmp_path / "masks/noscan_r1.nii", mask((1, 1, 1)))
    (tmp_path / "rois/noroi.nii").unlink()
    write(tmp_path / "masks/scan_r1.nii", np.ones(SHAPE))
    write(tmp_path / "masks/grid_r2.nii", mask((1, 1, 1)), AFFINE + np.eye(4))
    write(tmp_path / "rois/empty.nii", mask())
    rois = ("--rois", f"{tmp_path}/rois/{{subject}}.nii")
    assert exit_code(counts_from_masks.main, *arguments(tmp_path, *rois)) == 2
    printed = capsys.readouterr()
    assert [scan.subject for scan in read_cohort(tmp_path / "out/cohort.csv")] == ["good"]
    assert "3 of 4 scans failed" in printed.err.splitlines()[-1]
    for line in ("noroi: no ROI", "noscan: no scan", "scan: not counted", "grid: not counted"):
        assert f"left out: {line}" in printed.out
    for words in ("no voxel of the region", "not on the grid of", "100% of its voxels are marked"):
        assert words in printed.err


def test_options_out_of_range_are_refused_in_one_line(tmp_path, capsys):
    for option in ("--agreement=0", "--agreement=nan", "--min-mm3=-1"):
        line = refusal(capsys, counts_from_masks.main, *arguments(tmp_path, option))
        assert option.split("=")[0] in line

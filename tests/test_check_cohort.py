"""A clean cohort passes; each fault, put in alone, is named for its own scan and no other."""

import csv
import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

TOOLS = Path(__file__).parents[1] / "data_tools"
sys.path.insert(0, str(TOOLS))
import check_cohort  # noqa: E402

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 0, 1, -30], [0, 0.5, 0, 5], [0, 0, 0, 1.0]])
REGION = (slice(3, 9), slice(3, 8), slice(2, 7))
CENTRES = [(4, 4, 3), (7, 6, 5), (5, 7, 6)]  # voxels
SLICE_Z_MM = 8.0  # the file's j = 6: the second centre lies there
N = 6


def to_mm(voxel):
    return (AFFINE @ [*voxel, 1])[:3]


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, np.float32), affine), path)


def load(path):
    image = nibabel.load(path)
    return image.get_fdata(dtype=np.float32), image.affine.copy()


class Cohort:
    """Six raw scans on disk; `rows` may be changed before `check`."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        splits = ["train", "train", "val", "val", "test", "test"]
        self.rows = []
        for i in range(N):
            save(self.image(i), rng.uniform(50, 900, SHAPE))
            region = np.zeros(SHAPE)
            region[REGION] = 1
            save(self.roi(i), region)
            self.write_centres(i, [to_mm(voxel) for voxel in CENTRES[: 1 + i % 3]])
            names = [self.image(i).name, self.roi(i).name, self.centres(i).name]
            self.rows.append([f"s{i}", names[0], 1 + i % 3, names[1], splits[i], names[2], ""])

    def image(self, i):
        return self.folder / f"s{i}.nii.gz"

    def roi(self, i):
        return self.folder / f"s{i}_roi.nii.gz"

    def centres(self, i):
        return self.folder / f"s{i}.csv"

    def write_centres(self, i, points):
        with open(self.centres(i), "w", newline="") as file:
            csv.writer(file).writerows([["x_mm", "y_mm", "z_mm"], *points])

    def prepare(self):
        """Turn it into a prepared cohort: no ROI, [0, 1] and 0 outside the region."""
        for i in range(N):
            array, affine = load(self.image(i))
            save(self.image(i), array / 1000 * (load(self.roi(i))[0] > 0), affine)
            self.rows[i][3] = ""

    def check(self, capsys, *arguments):
        """Run the check; return its code and {subject: [(check, what), ...]}."""
        table = self.folder / "cohort.csv"
        header = ["subject", "image", "count", "roi", "split", "centres", "slice_z_mm"]
        with open(table, "w", newline="") as file:
            csv.writer(file).writerows([header, *self.rows])
        code = check_cohort.main(["--data", str(table), "--jobs", "1", *arguments])
        found = {}
        for line in capsys.readouterr().out.splitlines()[1:-1]:
            subject, check, what = line.split(maxsplit=2)
            found.setdefault(subject, []).append((check, what))
        return code, found


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path)


def test_clean_cohort_passes_raw_prepared_and_with_a_slice(cohort, capsys):
    assert cohort.check(capsys, "--jobs", "2") == (0, {})
    cohort.prepare()
    assert cohort.check(capsys) == (0, {})
    for i, row in enumerate(cohort.rows):
        row[6] = SLICE_Z_MM
        row[2] = int(i % 3 > 0)  # only the second centre lies in the slice
    assert cohort.check(capsys) == (0, {})


def change_image(change):
    def fault(cohort):
        array, affine = load(cohort.image(3))
        save(cohort.image(3), *change(array, affine))
        roi, _ = load(cohort.roi(3))
        save(cohort.roi(3), roi, change(array, affine)[1])

    return fault


def change_roi(change):
    def fault(cohort):
        save(cohort.roi(3), *change(*load(cohort.roi(3))))

    return fault


def change_row(column, value):
    def fault(cohort):
        cohort.rows[3][column] = value

    return fault


def thicker(array, affine):
    affine = affine.copy()
    affine[:3, 0] *= 1.2
    return array, affine


def tilted(array, affine):
    angle = np.radians(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return array, turn @ affine


def sheared(array, affine):
    affine = affine.copy()
    affine[0, 1] += 0.05
    return array, affine


def flat_region(array, affine):
    array[REGION] = 7
    return array, affine


def small_region(array, affine):
    array[REGION[0].start : REGION[0].start + 4] = 0
    return array, affine


def labels(array, affine):
    rng = np.random.default_rng(1)
    return array * rng.integers(1, 20, array.shape), affine


def shift(array, affine):
    affine = affine.copy()
    affine[0, 3] += 0.3
    return array, affine


def second_form(cohort):
    image = nibabel.load(cohort.image(3))
    image = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), AFFINE)
    image.set_sform(AFFINE, 1)
    other = AFFINE.copy()
    other[:3, 3] += 3
    image.set_qform(other, 1)
    nibabel.save(image, cohort.image(3))


def points(*voxels):
    def fault(cohort):
        cohort.write_centres(3, [to_mm(voxel) for voxel in voxels])

    return fault


def lps(cohort):
    cohort.write_centres(3, [to_mm(CENTRES[0]) * (-1, -1, 1)])


def copied(cohort):  # stored otherwise: other axes, other bytes
    array, affine = load(cohort.image(0))
    swap = np.eye(4)[[1, 0, 2, 3]]
    save(cohort.image(3), array.transpose(1, 0, 2), affine @ swap)
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(cohort.roi(3))), cohort.roi(3))


def missing_code(cohort):
    cohort.rows[3][2], cohort.rows[3][5] = 99, ""


def cut_off(cohort):
    content = cohort.image(3).read_bytes()
    cohort.image(3).write_bytes(content[: len(content) // 2])


def long_quaternion(cohort):
    """Scan 3 with a qform, too: half a turn about z, its quaternion too long by rounding."""
    image = nibabel.load(cohort.image(3))
    header = nibabel.Nifti1Header(image.header.binaryblock)
    header["qform_code"], header["quatern_d"] = 1, np.sqrt(1.000002)
    header["pixdim"][:4] = 1
    content = gzip.decompress(cohort.image(3).read_bytes())
    cohort.image(3).write_bytes(gzip.compress(header.binaryblock + content[348:]))


def soft(region):
    return ndimage.gaussian_filter(region, 0.6, truncate=2)


def splines(region, affine):
    moved = ndimage.shift(region, 0.4, order=3)
    return moved, affine


def nan_in_region(array, affine):
    array[5, 5, 5] = np.nan
    return array, affine


FAULTS = {  # a fault in scan s3 -> the checks that name it, and words
    "missing image": (lambda c: c.image(3).unlink(), {"image": "no such file"}),
    "half an image": (cut_off, {"image": "truncated or damaged"}),
    "constant": (
        change_image(lambda a, m: (a * 0 + 5, m)),
        {"intensity": "every voxel is 5"},
    ),
    "flat in the region": (change_image(flat_region), {"intensity": "same value, 7"}),
    "another scale": (change_image(lambda a, m: (a * 12, m)), {"intensity": "median"}),
    "another spacing": (
        change_image(thicker),
        {"spacing": "0.6 mm, the median is 0.5 x 1 x 0.5; preprocess --spacing-mm 0.5 1 0.5"},
    ),
    "rounded quaternion": (long_quaternion, {"image": "qform and sform"}),
    "tilted": (change_image(tilted), {"orientation": "20 degrees", "centres": "outside"}),
    "sheared": (change_image(sheared), {"affine": "degrees off square"}),
    "two forms": (second_form, {"image": "qform and sform"}),
    "missing roi": (lambda c: c.roi(3).unlink(), {"roi": "no such file"}),
    "roi of another grid": (
        change_roi(lambda a, m: (a[:-1], m)),
        {"roi": "not on the grid"},
    ),
    "roi shifted": (change_roi(shift), {"roi": "not on the grid"}),
    "empty roi": (change_roi(lambda a, m: (a * 0, m)), {"roi": "above 0"}),
    "small roi": (change_roi(small_region), {"roi": "region of 12.5 mm3, the median is 37.5"}),
    "segmentation for a roi": (change_roi(labels), {"roi": "19 labels"}),
    "roi from splines": (change_roi(splines), {"roi": "not a mask: values -0."}),
    "soft roi": (change_roi(lambda a, m: (soft(a), m)), {"roi": "not a mask:"}),
    "nan": (change_image(nan_in_region), {"image": "NaN or infinite voxels inside"}),
    "roi everywhere": (change_roi(lambda a, m: (a + 1, m)), {"roi": "fills 100%"}),
    "no count": (change_row(2, ""), {"counts": "no count"}),
    "missing code": (missing_code, {"counts": "stand for 'missing'"}),
    "count off the centres": (change_row(2, 2), {"counts": "count 2, but 1 centres"}),
    "centre outside the image": (points((4, 4, 30)), {"centres": "1 of 1 outside the image"}),
    "centre outside the region": (points((4, 4, 0)), {"centres": "1 of 1 more than a voxel"}),
    "left for right": (lps, {"centres": "LPS"}),
    "no number among the centres": (
        lambda c: c.write_centres(3, [(1, 2, "x")]),
        {"centres": "line 2"},
    ),
    "copy": (copied, {"duplicate": "'s0', one in train, one in val"}),
    "copy within a split": (
        lambda c: shutil.copy(c.image(2), c.image(3)),
        {"duplicate": "the same voxels as 's2'"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_for_its_scan_and_no_other(cohort, capsys, name):
    fault, expected = FAULTS[name]
    fault(cohort)
    code, found = cohort.check(capsys)
    assert code == 1 and set(found) == {"s3"}
    for check, words in expected.items():
        assert any(words in what for kind, what in found["s3"] if kind == check), found
    others = {kind for kind, _ in found["s3"]} - set(expected)
    # what follows from a wrong count, centre or region is named, too
    assert others <= {"counts", "centres", "roi"}, found


def test_nan_outside_the_region_is_not_wrong(cohort, capsys):
    array, affine = load(cohort.image(3))
    array[0, 0] = np.nan
    save(cohort.image(3), array, affine)
    assert cohort.check(capsys) == (0, {})


def test_sessions_of_one_person_in_two_splits_are_named(cohort, capsys):
    for i, row in enumerate(cohort.rows):
        row[0] = f"sub-{i // 2 % 2}_ses-{i}"  # train, train | val, val | test, test
    _, found = cohort.check(capsys)
    assert set(found) == {"sub-0_ses-4", "sub-0_ses-5"}
    assert "the same person as 'sub-0_ses-0', one in train, one in test" in str(found)


def test_twin_centres_and_a_slice_off_the_scan_or_the_region_are_named(cohort, capsys):
    cohort.write_centres(1, [to_mm(CENTRES[0]), to_mm(CENTRES[0]) + 0.01])
    assert cohort.check(capsys) == (1, {"s1": [("centres", "two within 0.1 mm of each other")]})
    heights = [to_mm((0, voxel, 0))[2] for voxel in (6, 6, 6, 6, 0, 40)]
    for row, z_mm in zip(cohort.rows, heights, strict=True):
        row[2], row[5], row[6] = 2, "", z_mm
    cohort.rows[0][2] = 1
    _, found = cohort.check(capsys)
    assert set(found) == {"s4", "s5"}
    assert "nothing of the region" in found["s4"][0][1] and "lies outside" in found["s5"][0][1]


def test_prepared_scans_that_are_raw_or_empty_are_named(cohort, capsys):
    raw = load(cohort.image(2))
    cohort.prepare()
    save(cohort.image(2), *raw)
    save(cohort.image(5), np.zeros(SHAPE))
    _, found = cohort.check(capsys)
    assert "a raw scan?" in dict(found["s2"])["intensity"]
    assert "every voxel is 0" in dict(found["s5"])["intensity"]
    assert set(found) == {"s2", "s5"}


def test_what_is_wrong_with_the_cohort_as_a_whole_is_named(cohort, capsys):
    for row in cohort.rows:
        row[2], row[5] = 3, ""
        row[4] = "train" if row[4] == "val" else row[4]
    _, found = cohort.check(capsys)
    (split, counts) = sorted(found.pop("(all)"), reverse=True)
    assert not found and "no scan in 'val'" in split[1] and "every count is 3" in counts[1]
    for row in cohort.rows:
        row[2] = ""
    _, found = cohort.check(capsys)
    assert set(found) == {"(all)"} and "no scan has a count" in str(found)


def test_exit_code_of_the_command_line_is_1_and_that_of_a_bad_table_2(cohort, capsys):
    cohort.roi(0).unlink()
    assert cohort.check(capsys)[0] == 1
    command = [sys.executable, str(TOOLS / "check_cohort.py"), "--jobs", "1", "--data"]
    done = subprocess.run([*command, cohort.folder / "cohort.csv"], capture_output=True, text=True)
    assert done.returncode == 1 and "s0_roi.nii.gz: no such file" in done.stdout
    with pytest.raises(SystemExit) as error:
        check_cohort.main(["--data", str(cohort.folder / "none.csv")])
    assert error.value.code == 2 and capsys.readouterr().err.count("\n") == 1

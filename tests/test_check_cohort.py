"""A clean cohort passes; each fault, put in alone, is named for its own scan and no other."""

import gzip
import shutil
import subprocess
import sys

import check_cohort
import nibabel
import numpy as np
import pytest
from helpers import ROOT, moved, refusal, save
from scipy import ndimage

from weakunet.util.cli import write_csv

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 0, 1, -30], [0, 0.5, 0, 5], [0, 0, 0, 1.0]])
EYE = np.eye(4)
REGION = (slice(3, 9), slice(3, 8), slice(2, 7))
CENTRES = [(4, 4, 3), (7, 6, 5), (5, 7, 6)]  # voxels
SLICE_Z_MM = 8.0  # the file's j = 6: the second centre lies there
N = 6


def to_mm(voxel):
    return (AFFINE @ [*voxel, 1])[:3]


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
        region = np.zeros(SHAPE, np.float32)
        region[REGION] = 1
        for i in range(N):
            save(self.image(i), rng.uniform(50, 900, SHAPE).astype("f4"), AFFINE)
            save(self.roi(i), region, AFFINE)
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
        write_csv(self.centres(i), ("x_mm", "y_mm", "z_mm"), points)

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
        write_csv(table, header, self.rows)
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


# -- faults of scan s3, each put in alone ----------------------------------------------------------


def keep(voxels):
    return voxels


def image(change=keep, by=EYE):
    """Change the voxels of the image; move the grids of image and ROI alike."""

    def fault(cohort):
        array, affine = load(cohort.image(3))
        save(cohort.image(3), change(array).astype("f4"), by @ affine)
        save(cohort.roi(3), load(cohort.roi(3))[0], by @ affine)

    return fault


def roi(change=keep, by=EYE):
    def fault(cohort):
        array, affine = load(cohort.roi(3))
        save(cohort.roi(3), change(array).astype("f4"), by @ affine)

    return fault


def row(column, value):
    def fault(cohort):
        cohort.rows[3][column] = value

    return fault


def centres(*voxels):
    return lambda cohort: cohort.write_centres(3, [to_mm(voxel) for voxel in voxels])


def set_voxels(place, value):
    def change(array):
        array[place] = value
        return array

    return change


def labels(array):
    return array * np.random.default_rng(1).integers(1, 20, array.shape)


def second_form(cohort):
    image = nibabel.load(cohort.image(3))
    image.set_qform(moved(mm=(3, 3, 3)) @ AFFINE, 1)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), AFFINE, image.header), cohort.image(3))


def lps(cohort):
    cohort.write_centres(3, [to_mm(CENTRES[0]) * (-1, -1, 1)])


def copied_file(cohort):
    shutil.copy(cohort.image(2), cohort.image(3))


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
    """A qform, too: half a turn about z, its quaternion too long by rounding."""
    image = nibabel.load(cohort.image(3))
    header = nibabel.Nifti1Header(image.header.binaryblock)
    header["qform_code"], header["quatern_d"] = 1, np.sqrt(1.000002)
    header["pixdim"][:4] = 1
    content = gzip.decompress(cohort.image(3).read_bytes())
    cohort.image(3).write_bytes(gzip.compress(header.binaryblock + content[348:]))


HALF = (slice(REGION[0].start, REGION[0].start + 4),)
FAULTS = {  # -> the check that names it, and words
    "missing image": (lambda c: c.image(3).unlink(), "image", "no such file"),
    "half an image": (cut_off, "image", "truncated or damaged"),
    "constant": (image(lambda a: a * 0 + 5), "intensity", "every voxel is 5"),
    "flat in the region": (image(set_voxels(REGION, 7)), "intensity", "same value, 7"),
    "another scale": (image(lambda a: a * 12), "intensity", "median"),
    "another spacing": (
        image(by=np.diag([1.2, 1, 1, 1])),
        "spacing",
        "0.6 mm, the median is 0.5 x 1 x 0.5; preprocess --spacing-mm 0.5 1 0.5",
    ),
    "rounded quaternion": (long_quaternion, "image", "qform and sform"),
    "tilted": (image(by=moved((0, 0, 20))), "orientation", "20 degrees"),
    "sheared": (image(by=EYE + 0.1 * np.eye(4, k=2)), "affine", "degrees off square"),
    "two forms": (second_form, "image", "qform and sform"),
    "missing roi": (lambda c: c.roi(3).unlink(), "roi", "no such file"),
    "roi of another grid": (roi(lambda a: a[:-1]), "roi", "not on the grid"),
    "roi shifted": (roi(by=moved(mm=(0.3, 0, 0))), "roi", "not on the grid"),
    "empty roi": (roi(lambda a: a * 0), "roi", "above 0"),
    "small roi": (roi(set_voxels(HALF, 0)), "roi", "region of 12.5 mm3, the median is 37.5"),
    "segmentation for a roi": (roi(labels), "roi", "19 labels"),
    "roi from splines": (roi(lambda a: ndimage.shift(a, 0.4)), "roi", "not a mask: values -0."),
    "soft roi": (roi(lambda a: ndimage.gaussian_filter(a, 0.6, truncate=2)), "roi", "not a mask:"),
    "nan": (image(set_voxels((5, 5, 5), np.nan)), "image", "NaN or infinite voxels inside"),
    "roi everywhere": (roi(lambda a: a + 1), "roi", "fills 100%"),
    "no count": (row(2, ""), "counts", "no count"),
    "missing code": (missing_code, "counts", "stand for 'missing'"),
    "count off the centres": (row(2, 2), "counts", "count 2, but 1 centres"),
    "centre outside the image": (centres((4, 4, 30)), "centres", "1 of 1 outside the image"),
    "centre outside the region": (centres((4, 4, 0)), "centres", "1 of 1 more than a voxel"),
    "left for right": (lps, "centres", "LPS"),
    "centre without z": (lambda c: c.write_centres(3, [(1, 2, "x")]), "centres", "line 2"),
    "copy": (copied, "duplicate", "'s0', one in train, one in val"),
    "copy within a split": (copied_file, "duplicate", "the same voxels as 's2'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_for_its_scan_and_no_other(cohort, capsys, name):
    fault, check, words = FAULTS[name]
    fault(cohort)
    code, found = cohort.check(capsys)
    assert code == 1 and set(found) == {"s3"}
    assert any(words in what for kind, what in found["s3"] if kind == check), found
    # what follows from a wrong count, centre or region is named, too
    assert {kind for kind, _ in found["s3"]} <= {check, "counts", "centres", "roi"}, found


def test_nan_outside_the_region_is_not_wrong(cohort, capsys):
    image(set_voxels((0, 0), np.nan))(cohort)
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
    save(cohort.image(5), np.zeros(SHAPE, np.float32), AFFINE)
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
    command = [sys.executable, ROOT / "data_tools" / "check_cohort.py", "--jobs", "1", "--data"]
    done = subprocess.run([*command, cohort.folder / "cohort.csv"], capture_output=True, text=True)
    assert done.returncode == 1 and "s0_roi.nii.gz: no such file" in done.stdout
    refusal(capsys, check_cohort.main, "--data", cohort.folder / "none.csv")

"""The cohort table: what is read from it, what is refused, and how it is split."""

from pathlib import Path

import numpy as np
import pytest
from helpers import save

from weakunet.data.cohort import Scan, read_centres, read_cohort, split_cohort, write_cohort
from weakunet.data.load import load_scan
from weakunet.util.cli import InputError


def table(folder, text, encoding="utf-8"):
    path = folder / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_table_with_bom_blank_lines_spaces_and_other_columns_is_read(tmp_path):
    text = (
        "\ufeffage, subject ,image,count,roi,split,centres\r\n"
        "\r\n"
        '71,s1, "a, b/é.nii.gz",3,m.nii,train,c.csv\r\n'
        " , , ,\r\n"
        "\r\n"
        "65, s2 ,/abs/b.nii,4.0,,TEST\r\n"
        "80,s3,c.nii,,,val,\r\n"
    )
    assert read_cohort(table(tmp_path, text)) == [
        Scan("s1", tmp_path / "a, b/é.nii.gz", 3, tmp_path / "m.nii", "train", tmp_path / "c.csv"),
        Scan("s2", Path("/abs/b.nii"), 4, None, "test", None),
        Scan("s3", tmp_path / "c.nii", None, None, "val", None),
    ]


HEADER = "subject,image,count,split\n"
SLICE = "subject,image,slice_z_mm\n"
BAD_TABLES = {
    "nothing": ("", "no column subject, image (its columns are none)"),
    "only a header": (HEADER, "no scans"),
    "missing column": ("subject,count\na,1\n", "the first line must name subject, image"),
    "column twice": ("subject,image,count,count\na,b,1,2\n", "2 columns are called 'count'"),
    "open quote": ('subject,image\na,b\n"b,c\nd,e\n', "not readable as a table"),
    "thousands or thousandths": (HEADER + "a,b,1.000,\n", "line 2: count '1.000'"),
    "negative count": (HEADER + "a,b,-1,\n", "line 2: count '-1'"),
    "half a count": (HEADER + "a,b,1.5,\n", "line 2: count '1.5'"),
    "count is text": (HEADER + "a,b,many,\n", "line 2: count 'many'"),
    "count is infinite": (HEADER + "a,b,1e999,\n", "line 2: count '1e999'"),
    "duplicate": (HEADER + "a,b,1,\n\nA,c,1,\n", "line 4: subject 'A' is already on line 2"),
    "no subject": (HEADER + ",b,1,\n", "line 2: subject ''"),
    "subject leaves the folder": (HEADER + "../a,b,1,\n", "cannot name a file"),
    "no image": (HEADER + "a,,1,\n", "line 2: no image"),
    "image with a line break": (HEADER + 'a,"b\nc",1,\n', "line break"),
    "unknown split": (HEADER + "a,b,1,validation\n", "split 'validation' is unknown"),
    "split of some": (HEADER + "a,b,1,train\nb,b,1,\n", "'b' has no split"),
    "too many cells": (HEADER + "a,b,1,train,x\n", "line 2 has 5 cells"),
    "roi is the image": ("subject,image,roi\na,b.nii,b.nii\n", "the roi is the image itself"),
    "é in two ways": (HEADER + "\xe9,b,1,\ne\u0301,c,1,\n", "is already on line 2"),
    "underscore": (SLICE + "a,b,1_5\n", "slice_z_mm '1_5' is not a number"),
    "nul": (HEADER + "a,b\0,1,\n", "line"),
    "slice is text": (SLICE + "a,b,here\n", "line 2: slice_z_mm 'here' is not a number"),
    "slice is infinite": (SLICE + "a,b,1\nb,b,inf\n", "line 3: slice_z_mm 'inf' is not a number"),
    "slice of some": (SLICE + "a,b,1\nb,b,\n", "subject 'b' has no slice_z_mm but others do"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_refused_in_one_line_that_names_it(tmp_path, case):
    text, problem = BAD_TABLES[case]
    path = table(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_cohort(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and problem in message and "\n" not in message


def test_missing_folder_and_other_encodings_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_cohort(tmp_path / "missing.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_cohort(tmp_path)
    (tmp_path / "cohort.csv").write_bytes(b"subject,image\n\x81,b\n")  # in no Windows code page
    with pytest.raises(InputError, match="CSV UTF-8"):
        read_cohort(tmp_path / "cohort.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_table_saved_by_a_european_excel_is_read(tmp_path, encoding):
    text = "subject;image;Count;slice_z_mm\r\né1;a.nii;2,0;-3,5\r\né2;b.nii;0;4\r\n"
    assert read_cohort(table(tmp_path, text, encoding)) == [
        Scan("é1", tmp_path / "a.nii", 2, slice_z_mm=-3.5),
        Scan("é2", tmp_path / "b.nii", 0, slice_z_mm=4),
    ]


@pytest.mark.parametrize("blank", ["", "NA", "n/a", "NaN", "None", "."])
def test_blank_cells_of_every_kind_mean_unknown(tmp_path, blank):
    text = f"subject,image,count,roi,split,centres,slice_z_mm\na,b.nii{f',{blank}' * 5}\n"
    scans = read_cohort(table(tmp_path, text))
    assert scans == [Scan("a", tmp_path / "b.nii")]
    write_cohort(tmp_path / "out.csv", scans)
    assert (tmp_path / "out.csv").read_text() == "subject,image,count\na,b.nii,\n"


def test_written_table_reads_back_the_same_with_relative_paths(tmp_path):
    raw, path = tmp_path / "raw", tmp_path / "out" / "cohort.csv"
    scans = [
        Scan("a", raw / "a, b.nii.gz", 0, raw / "a.mgz", slice_z_mm=-3.25),
        Scan("b", tmp_path / "out" / "b.nii", None, None, slice_z_mm=7),
    ]
    write_cohort(path, scans)
    lines = ['a,"../raw/a, b.nii.gz",0,../raw/a.mgz,-3.25', "b,b.nii,,,7"]
    assert path.read_text().splitlines() == ["subject,image,count,roi,slice_z_mm", *lines]
    back = read_cohort(path)
    assert [(s.subject, s.count, s.image.resolve(), s.slice_z_mm) for s in back] == [
        (s.subject, s.count, s.image, s.slice_z_mm) for s in scans
    ]


def cohort(n):
    return [Scan(f"s{i:03d}", Path("a.nii"), i % 7) for i in range(n)]


def test_split_is_seeded_and_does_not_depend_on_the_order_of_rows():
    scans = cohort(100)
    split = split_cohort(scans, seed=1)
    assert [s.subject for s in split] == [s.subject for s in scans]
    number = {name: sum(s.split == name for s in split) for name in ("train", "val", "test")}
    assert number == {"train": 70, "val": 15, "test": 15}
    assert split_cohort(scans[::-1], seed=1)[::-1] == split
    assert split_cohort(scans, seed=2) != split
    assert split_cohort(split, seed=2) == split  # the table's own split is kept


def test_sessions_of_one_person_stay_together():
    names = [f"sub-{i:02}_ses-{j}" for i in range(20) for j in range(1 + i % 3)]
    scans = [Scan(name, Path("a.nii"), count=1) for name in names]
    split = {scan.subject: scan.split for scan in split_cohort(scans, seed=3)}
    for i in range(20):
        assert len({split[name] for name in names if name.startswith(f"sub-{i:02}")}) == 1
    assert set(split.values()) == {"train", "val", "test"}


def test_split_of_three_has_one_each_and_of_two_is_refused():
    assert {s.split for s in split_cohort(cohort(3), seed=0)} == {"train", "val", "test"}
    with pytest.raises(InputError, match="c.csv: the split 'train' holds no scan"):
        split_cohort(cohort(2), seed=0, path="c.csv")


def test_empty_split_and_scan_without_count_are_refused():
    scans = [Scan("a", Path("a.nii"), 1, None, "train"), Scan("b", Path("b.nii"), 1, None, "test")]
    with pytest.raises(InputError, match="'val' holds no scan"):
        split_cohort(scans, seed=0)
    with pytest.raises(InputError, match="'s' has no count"):
        split_cohort([*cohort(5), Scan("s", Path("a.nii"))], seed=0)


def centres_file(folder, text):
    path = folder / "centres.csv"
    path.write_text(text)
    return path


def test_centres_are_read_by_name_and_may_be_none(tmp_path):
    path = centres_file(tmp_path, "y_mm,x_mm,z_mm,who\n2,1,3,me\n-2.5,-1,1e1,me\n")
    assert np.array_equal(read_centres(path), [[1, 2, 3], [-1, -2.5, 10]])
    assert read_centres(centres_file(tmp_path, "x_mm,y_mm,z_mm\n")).shape == (0, 3)
    path = centres_file(tmp_path, "x_mm;y_mm;z_mm\n1,5;-2,25;3\n")  # a European Excel's
    assert np.array_equal(read_centres(path), [[1.5, -2.25, 3]])


@pytest.mark.parametrize("row", ["1,2,", "1,nan,3", "1,2,three"])
def test_bad_centres_are_refused(tmp_path, row):
    with pytest.raises(InputError, match="centres.csv: line 2"):
        read_centres(centres_file(tmp_path, f"x_mm,y_mm,z_mm\n{row}\n"))
    with pytest.raises(InputError, match="no column x_mm, y_mm, z_mm"):
        read_centres(centres_file(tmp_path, "x,y,z\n1,2,3\n"))


def prepared_file(folder, xyz):
    affine = np.array([[-0.5, 0, 0, 10], [0, 0, 2, -20], [0, 1, 0, 5], [0, 0, 0, 1]])
    return save(folder / "a.nii.gz", xyz.astype(np.float32), affine)


def test_scan_is_loaded_with_its_centres_in_voxels(tmp_path):
    xyz = np.random.default_rng(0).random((6, 5, 4))
    xyz[4, 3, 2] = 1
    image = prepared_file(tmp_path, xyz)
    # voxel (4, 3, 2) of the file lies at (10 - 2, -20 + 4, 5 + 3) mm
    centres = centres_file(tmp_path, "x_mm,y_mm,z_mm\n8,-16,8\n8.25,-16,8\n")
    loaded = load_scan(Scan("s", image, 2, centres=centres))
    assert (loaded.subject, loaded.count) == ("s", 2)
    first, second = loaded.centres_zyx
    assert loaded.volume.array[tuple(first.round().astype(int))] == 1
    np.testing.assert_allclose(second - first, [0, 0, 0.5], atol=1e-9)
    assert load_scan(Scan("s", image)).centres_zyx is None


def test_scan_that_is_not_prepared_constant_or_elsewhere_is_refused(tmp_path):
    noise, flat = np.random.default_rng(0).random((6, 5, 4)), np.full((6, 5, 4), 0.5)
    centres = centres_file(tmp_path, "x_mm,y_mm,z_mm\n-8,16,8\n")
    for xyz, marked, said in (
        (noise * 900, None, r"a.nii.gz: intensities .* python -m weakunet.preprocess"),
        (flat, None, "every voxel is 0.5"),
        (noise, centres, "every centre lies outside .*RAS"),
    ):
        with pytest.raises(InputError, match=said):
            load_scan(Scan("s", prepared_file(tmp_path, xyz), 2, centres=marked))


def test_prepared_scan_with_holes_in_its_roi_is_used_with_a_note(tmp_path, capsys):
    xyz = 0.5 + 0.1 * np.random.default_rng(0).random((7, 6, 5))
    load_scan(Scan("s", prepared_file(tmp_path, xyz)))
    assert capsys.readouterr().err == ""
    xyz[3:5, 2, 2] = xyz[0, 0, 0] = 0  # inside; at the border, where it is no hole
    load_scan(Scan("s", prepared_file(tmp_path, xyz)))
    assert "a.nii.gz: 0, so outside to the network, at 2 voxels" in capsys.readouterr().err

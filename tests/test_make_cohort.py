"""The cohort table from foreign files: what is matched, left out and why, and refused."""

import subprocess
import sys

import make_cohort
import pytest
from cohort_files import find_files, read_counts, subject_key
from helpers import ROOT, exit_code, refusal

from weakunet.data.cohort import read_cohort, split_cohort
from weakunet.data.tables import read_table
from weakunet.util.cli import InputError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def counts_file(folder, text, encoding="utf-8"):
    path = folder / "counts.txt"
    path.write_bytes(text.encode(encoding))
    return path


def run(folder, *arguments):
    """Run the tool; return {subject: (image, count, roi, centres)}, paths within `folder`."""
    assert exit_code(make_cohort.main, *arguments, "--out", folder / "cohort.csv") == 0

    def within(path):
        return path and path.resolve().relative_to(folder.resolve()).as_posix()

    return {
        scan.subject: (within(scan.image), scan.count, within(scan.roi), within(scan.centres))
        for scan in read_cohort(folder / "cohort.csv")
    }


def failure(capsys, folder, *arguments):
    return refusal(capsys, make_cohort.main, *arguments, "--out", folder / "cohort.csv")


def test_folder_and_spreadsheet_are_joined_and_what_is_left_out_is_named(tmp_path, capsys):
    touch(tmp_path, *(f"scans/{name}_T2.nii.gz" for name in ("a", "B", "c", "d", "e", "twice")))
    touch(tmp_path, "scans/a_T1.nii.gz", "scans/TWICE_T2.nii.gz", "marks/a.csv")
    touch(tmp_path, *(f"rois/{name}.nii.gz" for name in ("a", "b", "c", "e", "twice")))
    text = "name,age,id,n\nx,70,a,3\ny,71,b,4.0\nz,72,c,?\n,,d,1\n,,f,2\n,,twice,1\n"
    table = run(
        tmp_path,
        *("--images", tmp_path / "scans/{subject}_T2.nii.gz"),
        *("--rois", tmp_path / "rois/{subject}.nii.gz"),
        *("--centres", tmp_path / "marks/{subject}.csv"),
        *("--counts", counts_file(tmp_path, text), "--subject-column", "id"),
        *("--count-column", "n"),
    )
    assert table == {
        "a": ("scans/a_T2.nii.gz", 3, "rois/a.nii.gz", "marks/a.csv"),
        "B": ("scans/B_T2.nii.gz", 4, "rois/b.nii.gz", None),
    }
    out = capsys.readouterr().out.splitlines()
    for line, *words in (
        (0, "1 of 2 scans have no list of centres"),
        (1, "left out: c: count '?' is not a whole number", "counts.txt, line 4"),
        (2, "left out: d: no ROI"),
        (3, "left out: e: no count for the scan", "e_T2.nii.gz"),
        (4, "left out: f: no scan"),
        (5, "left out: TWICE: 2 scans", "TWICE_T2.nii.gz", "twice_T2.nii.gz"),
        (6, "wrote 2 scans, left out 5"),
    ):
        assert all(word in out[line] for word in words), out[line]
    assert len(out) == 7


SPREADSHEETS = {
    "commas": "id,n\n007,3\n",
    "tabs": "id\tn\n7\t3\n",
    "semicolons, decimal comma": "id;n\n007;3,0\n",
    "decimal point": "id;comment, if any;n\n7;;3.00\n",
    "mark, sep line, CRLF, blank lines": "\ufeffsep=;\r\n\r\nid;n\r\n;\r\nsub-007;3\r\n",
    "odd quoting": '"n","id","a ""b"", c"\n" 3 "," 007","x, y\nz"\n',
    "quoted semicolons": '"id";"n"\n"7";"3"\n',
    "other case, short row": "x;N;ID;y\n;3.;7\n",
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_spreadsheet_is_read_however_it_was_exported(tmp_path, kind, encoding):
    path = counts_file(tmp_path, SPREADSHEETS[kind], encoding)
    (entry,) = read_counts(path, "id", "n").values()
    assert (subject_key(entry.name), entry.count, entry.problem) == ("7", 3, None)


def test_letter_with_an_accent_is_the_same_in_both_spellings():
    """A Mac may write the letter and the accent apart in the names of files."""
    assert subject_key("Ren\xe9") == subject_key("Rene\u0301") != subject_key("Rene")


def test_western_european_text_is_read_and_exact_case_goes_first(tmp_path):
    path = counts_file(tmp_path, "ID;id;Zählung\nA;é;1\n", "cp1252")
    assert list(read_table(path, ["id", "zählung"])) == [(2, {"id": "é", "zählung": "1"})]


@pytest.mark.parametrize(
    "text", ["1.000", "1,000", "2.5", "-1", "3?", "1e2", "nan", "", "99999999"]
)
def test_number_that_is_no_clear_count_is_a_problem_and_never_a_guess(tmp_path, text):
    (entry,) = read_counts(counts_file(tmp_path, f"id;n\na;{text}\n"), "id", "n").values()
    assert entry.count is None and "line 2" in entry.problem


def test_a_subject_on_two_rows_and_a_row_without_one_are_problems(tmp_path):
    text = "id,n\n07,1\nb,2\nsub-7,1\n,5\n"
    entries = read_counts(counts_file(tmp_path, text), "id", "n")
    assert [entry.count for entry in entries.values()] == [None, 2, None]
    assert "several rows" in entries["7"].problem and "lines 2 and 4" in entries["7"].problem
    assert "without a subject" in entries["line 5"].problem


BAD_SPREADSHEETS = {
    "no column": ("id,count\na,1\n", "no column n (its columns are id, count)"),
    "column twice": ("id,n,n\na,1,2\n", "2 columns are called 'n'"),
    "open quote": ('id,n\na,1\n"b,2\nc,3\n', "not readable as a table"),
    "too many cells": ("id,n\na,1,x\n", "line 2 has 3 cells"),
    "only a header": ("id,n\n", "no row with a subject"),
    "xlsx": ("PK\3\4", "save the sheet as CSV"),
}


@pytest.mark.parametrize("case", BAD_SPREADSHEETS)
def test_bad_spreadsheet_is_refused_in_a_line_that_names_it(tmp_path, case):
    text, problem = BAD_SPREADSHEETS[case]
    path = counts_file(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_counts(path, "id", "n")
    assert str(error.value).startswith(f"{path}: ") and problem in str(error.value)


def test_pattern_finds_a_subject_by_the_text_that_recurs(tmp_path):
    touch(tmp_path, "a[1]/s1/s1_x_T2.nii", "a[1]/s1/s2_x_T2.nii", "a[1]/s3/s3__T2.nii")
    touch(tmp_path, "a[1]/s3/s3_T2.nii", "a1/s4/s4_x_T2.nii")
    found = find_files(str(tmp_path / "a[1]/{subject}/{subject}_*_T2.nii"))
    assert {key: [path.name for _, path in files] for key, files in found.items()} == {
        "s1": ["s1_x_T2.nii"],
        "s3": ["s3__T2.nii"],
    }
    shortest = find_files(str(tmp_path / "a[1]/s1/{subject}_*.nii"))
    assert list(shortest) == ["s1", "s2"]
    for pattern, problem in (("*.nii", "no {subject}"), ("{subject}.gz", "no file fits")):
        with pytest.raises(InputError, match=problem):
            find_files(str(tmp_path / pattern))


def test_what_another_pattern_claims_is_no_scan(tmp_path, capsys):
    touch(tmp_path, "a.nii", "a_roi.nii", "b.nii", "b_roi.nii")
    counts = counts_file(tmp_path, "subject,count\na,1\nb,2\n")
    patterns = ["--images", tmp_path / "{subject}.nii", "--rois", tmp_path / "{subject}_roi.nii"]
    table = run(tmp_path, *patterns, "--counts", counts)
    assert table == {"a": ("a.nii", 1, "a_roi.nii", None), "b": ("b.nii", 2, "b_roi.nii", None)}
    assert "left out 0" in capsys.readouterr().out


def test_names_with_a_site_before_the_subject_get_a_hint(tmp_path, capsys):
    touch(tmp_path, "scans/AMS_0005_T2.nii", "scans/ROT_0009_T2.nii")
    touch(tmp_path, "rois/AMS_0005.nii", "rois/ROT_0009.nii")
    counts = counts_file(tmp_path, "subject,count\n5,1\n9,2\n")
    arguments = ["--counts", counts, "--rois", tmp_path / "rois/{subject}.nii", "--images"]
    images = tmp_path / "scans/{subject}_T2.nii"
    exit_code(make_cohort.main, *arguments, images, "--out", tmp_path / "cohort.csv")
    out = capsys.readouterr().out
    assert f"write {tmp_path / 'scans/*_{subject}_T2.nii'}" in out
    assert f"write {tmp_path / 'rois/*_{subject}.nii'}" in out
    arguments[3] = tmp_path / "rois/*_{subject}.nii"
    table = run(tmp_path, *arguments, tmp_path / "scans/*_{subject}_T2.nii")
    assert [table[name][1] for name in ("0005", "0009")] == [1, 2]
    assert "hint" not in capsys.readouterr().out


def test_bids_dataset_takes_counts_from_participants_and_names_runs(tmp_path, capsys):
    for name in ("sub-01", "sub-02", "sub-03"):
        touch(tmp_path, f"{name}/anat/{name}_PD.nii.gz", f"{name}/anat/{name}_PD.json")
    touch(tmp_path, "sub-03/anat/sub-03_run-2_PD.nii.gz", "sub-02/anat/sub-02_FLAIR.nii.gz")
    text = "participant_id\tepvs\nsub-01\t2\nsub-02\tn/a\nsub-03\t1\n"
    (tmp_path / "participants.tsv").write_text(text)
    table = run(tmp_path, "--bids", tmp_path, "--count-column", "epvs")
    assert table == {"sub-01": ("sub-01/anat/sub-01_PD.nii.gz", 2, None, None)}
    out = capsys.readouterr().out
    assert "left out: sub-02: no count" in out and "left out: sub-03: 2 scans" in out


def test_bids_session_and_phenotype_choose_scan_and_count(tmp_path, capsys):
    for session in ("ses-a", "ses-b"):
        for suffix in ("T1w", "T2w"):
            touch(tmp_path, f"sub-01/{session}/anat/sub-01_{session}_acq-x_{suffix}.nii")
    touch(tmp_path, "phenotype/x")
    text = "participant_id\tsession_id\tn\nsub-01\tses-a\t1\nsub-01\tses-b\t2\n"
    counts = tmp_path / "phenotype" / "epvs.tsv"
    counts.write_text(text)
    arguments = ["--bids", tmp_path, "--counts", counts, "--count-column", "n"]
    message = failure(capsys, tmp_path, *arguments)
    assert "T1w, T2w" in message and "--suffix" in message
    table = run(tmp_path, *arguments, "--suffix", "T2w", "--session", "b")
    assert table == {"sub-01": ("sub-01/ses-b/anat/sub-01_ses-b_acq-x_T2w.nii", 2, None, None)}
    assert "no scan is left" in failure(capsys, tmp_path, *arguments, "--suffix", "T2w")
    assert "T1w, T2w" in failure(capsys, tmp_path, *arguments, "--suffix", "PD")
    assert "are none" in failure(capsys, tmp_path, *arguments, "--session", "c")


def test_slice_column_fills_the_slices_height(tmp_path, capsys):
    touch(tmp_path, "a.nii", "b.nii")
    counts = counts_file(tmp_path, "subject;count;ac\na;1;-3,5\nb;2;high\n")
    arguments = ["--images", tmp_path / "{subject}.nii", "--counts", counts]
    run(tmp_path, *arguments, "--slice-column", "ac")
    assert [scan.slice_z_mm for scan in read_cohort(tmp_path / "cohort.csv")] == [-3.5]
    assert "left out: b: ac 'high' is not a number" in capsys.readouterr().out


def test_command_line_works_from_anywhere_and_refuses_what_does_not_fit(tmp_path, capsys):
    touch(tmp_path, "in/a.nii")
    counts = counts_file(tmp_path, "subject,count\na,1\n")
    (tmp_path / "out").mkdir()
    command = [sys.executable, ROOT / "data_tools" / "make_cohort.py"]
    command += ["--images", "in/{subject}.nii", "--counts", counts.name, "--out", "out/cohort.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "wrote 1 scans" in done.stdout
    text = (tmp_path / "out" / "cohort.csv").read_text()
    assert text == "subject,image,count\na,../in/a.nii,1\n"
    images = ("--images", tmp_path / "in/{subject}.nii")
    assert "needs --counts" in failure(capsys, tmp_path, *images)
    assert "are none" in failure(capsys, tmp_path, "--bids", tmp_path, "--count-column", "n")


def test_table_holds_a_split_so_that_training_and_evaluation_agree(tmp_path):
    names = [f"s{i:02d}" for i in range(20)]
    touch(tmp_path, *(f"scans/{name}.nii" for name in names))
    counts = counts_file(tmp_path, "subject,count\n" + "".join(f"{name},1\n" for name in names))
    arguments = ("--images", tmp_path / "scans/{subject}.nii", "--counts", counts)
    run(tmp_path, *arguments)
    table = read_cohort(tmp_path / "cohort.csv")
    splits = [scan.split for scan in table]
    assert [splits.count(name) for name in ("train", "val", "test")] == [14, 3, 3]
    assert split_cohort(table, seed=1) == table  # training takes the table's own, whatever its seed
    run(tmp_path, *arguments)
    assert read_cohort(tmp_path / "cohort.csv") == table
    counts.write_text("subject,count\ns01,1\ns02,1\n")
    run(tmp_path, *arguments)
    assert {scan.split for scan in read_cohort(tmp_path / "cohort.csv")} == {None}

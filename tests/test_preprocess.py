"""The preprocess command: its files, resuming, joining parts, and what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import ROOT, contents, exit_code
from scipy import ndimage
from test_prepare import raw_scan

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, read_cohort, write_cohort
from weakunet.data.load import load_scan
from weakunet.data.prepare import prepare
from weakunet.data.volumes import index_to_world, write_volume
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint


@pytest.fixture
def cohort(tmp_path):
    """A table of three raw scans with ROI and centres; its path."""
    folder, scans = tmp_path / "raw", []
    for i in range(3):
        image, mask, centres = (folder / f"s{i}{end}" for end in (".nii.gz", "_roi.nii", ".csv"))
        volume, roi = raw_scan(i)
        write_volume(image, volume.array, volume)
        write_volume(mask, roi.array > 0, roi)
        centres.write_text("x_mm,y_mm,z_mm\n45,-24,18\n")  # voxel x 10, y 10, z 10
        scans.append(Scan(f"s{i}", image, i, mask, "train", centres))
    write_cohort(folder / "cohort.csv", scans)
    return folder / "cohort.csv"


def run(table, out, *options):
    return exit_code(preprocess.main, "--data", table, "--out", out, "--jobs", "1", *options)


def subjects(table):
    return [scan.subject for scan in read_cohort(table)]


# -- the files it writes ---------------------------------------------------------------------------


def test_command_writes_a_cohort_ready_for_training(cohort, tmp_path):
    out = tmp_path / "out"
    assert run(cohort, out) == 0
    scans = read_cohort(out / "cohort.csv")
    assert [(s.subject, s.count, s.roi, s.split) for s in scans] == [
        (f"s{i}", i, None, "train") for i in range(3)
    ]
    loaded = load_scan(scans[1])
    np.testing.assert_allclose(loaded.volume.array, prepare(*raw_scan(1)).array, atol=1e-7)
    np.testing.assert_allclose(loaded.centres_zyx, [[6, 5, 4]], atol=1e-5)


def test_spacing_option_resamples_and_places_lesions(cohort, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(cohort, out, "--spacing-mm", "0.8", "0.6", "0.5") == 0  # the scans' own
    assert run(cohort, tmp_path / "same") == 0
    assert contents(out)["s1.nii.gz"] == contents(tmp_path / "same")["s1.nii.gz"]
    out = tmp_path / "coarse"
    options = ["--spacing-mm", "1", "0.9", "0.75", "--figures"]
    assert run(cohort, out, *options) == 0
    assert json.loads((out / "settings.json").read_text())["spacing_mm"] == [1, 0.9, 0.75]
    loaded = load_scan(read_cohort(out / "cohort.csv")[1])
    np.testing.assert_allclose(loaded.volume.spacing_mm, (1, 0.9, 0.75), rtol=1e-6)
    place = index_to_world(loaded.volume, loaded.centres_zyx)
    np.testing.assert_allclose(place, [[45, -24, 18]], atol=1e-4)
    assert loaded.volume.array.max() == 1
    for sizes in (["0", "1", "1"], ["1", "nan", "1"]):
        assert run(cohort, tmp_path / "bad", "--spacing-mm", *sizes) == 2
    assert run(cohort, tmp_path / "fine", "--spacing-mm", "0.001", "0.001", "0.001") == 2
    assert "s0.nii.gz: too many voxels" in capsys.readouterr().err
    assert not (tmp_path / "fine" / "cohort.csv").exists()


def test_pictures_are_added_to_a_finished_folder_on_request(cohort, tmp_path):
    assert run(cohort, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert run(cohort, tmp_path / "out", "--figures") == 0
    after = contents(tmp_path / "out")
    pictures = {f"s{i}_steps.png" for i in range(3)}
    assert after.keys() - before.keys() == pictures
    assert all(after[name] == before[name] for name in before)
    assert all(after[name][1:4] == b"PNG" for name in pictures)


# -- after a stop, a kill or a correction ----------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="kills a group of processes")
def test_killed_run_leaves_whole_files_and_no_worker_and_continues(cohort, tmp_path):
    scans = read_cohort(cohort)
    many = [dataclasses.replace(scans[i % 3], subject=f"s{i:02d}") for i in range(30)]
    write_cohort(cohort, many)
    out, options = tmp_path / "out", ["--data", cohort, "--jobs", "2", "--out"]
    command = [sys.executable, "-m", "weakunet.preprocess", *options, out]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("s*.nii.gz"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for _ in range(1000):
        try:
            os.killpg(process.pid, 0)  # is anybody of its group left?
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("a worker outlived the killed run")
    noted = [out / f"{path.stem}.nii.gz" for path in (out / ".done").glob("s*.json")]
    done = {path.name: path.stat().st_mtime_ns for path in noted}
    assert 2 <= len(done) < 30 and not (out / "cohort.csv").exists()
    assert run(cohort, out) == 0
    assert run(cohort, tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    assert {name: contents(out)[name] for name in whole} == whole
    assert all((out / name).stat().st_mtime_ns == written for name, written in done.items())


def test_second_run_keeps_what_is_done_and_redoes_what_is_missing_or_old(cohort, tmp_path):
    out = tmp_path / "out"
    assert run(cohort, out) == 0
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "s1.nii.gz").unlink()
    os.utime(cohort.parent / "s0_roi.nii", (1, 1))  # another time, the same content
    volume, roi = raw_scan(3)
    write_volume(cohort.parent / "s2.nii.gz", volume.array, volume)
    assert run(cohort, out) == 0
    same = [path.name for path in times if path.stat().st_mtime_ns == times[path]]
    assert same == ["s0.nii.gz"]
    assert contents(out)["s1.nii.gz"] == before["s1.nii.gz"]
    again = load_scan(read_cohort(out / "cohort.csv")[2]).volume.array
    np.testing.assert_allclose(again, prepare(volume, roi).array, atol=1e-7)


def test_corrected_table_is_obeyed_whatever_the_age_of_its_files(cohort, tmp_path):
    folder, head = cohort.parent, "subject,image,count,roi,centres,slice_z_mm\n"
    for path in folder.iterdir():
        os.utime(path, (1, 1))  # older than any result
    wrong = {"image": "s1.nii.gz", "roi": "s1_roi.nii", "centres": "s1.csv", "z": "17.6"}
    (folder / "s2.csv").write_text("x_mm,y_mm,z_mm\n46,-23,19\n")
    _, roi = raw_scan(2)
    roi.array[:] = np.roll(roi.array, 2, axis=2)
    write_volume(folder / "s2_roi.nii", roi.array > 0, roi)
    right = {"image": "s2.nii.gz", "roi": "s2_roi.nii", "centres": "s2.csv", "z": "18.4"}
    for name in wrong:  # one wrong cell, corrected
        row = right | {name: wrong[name]}
        for cells, out in ((row, "out"), (right, "out"), (right, "fresh")):
            line = "a,{image},3,{roi},{centres},{z}\n".format(**cells)
            cohort.write_text(head + line)
            assert run(cohort, tmp_path / name / out, "--slab-mm", "2") == 0
        one, two = (contents(tmp_path / name / out) for out in ("out", "fresh"))
        assert one == two, name


# -- parts and subjects ----------------------------------------------------------------------------


def test_parts_side_by_side_join_to_the_table_of_one_process(cohort, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(cohort, whole) == 0
    command = [sys.executable, "-m", "weakunet.preprocess", "--data", cohort, "--out", out]
    parts = [[*command, "--jobs", "1", "--part", f"{k}/3"] for k in (1, 3)]
    jobs = [subprocess.Popen(part, stderr=subprocess.DEVNULL) for part in parts]
    assert [job.wait() for job in jobs] == [0, 0]
    assert not (out / "cohort.csv").exists()
    assert subjects(out / "cohort.part-3-of-3.csv") == ["s2"]
    assert run(cohort, out) == 2  # joins and names what is missing
    assert "failed: s1 is missing; run its part again" in capsys.readouterr().err
    assert subjects(out / "cohort.csv") == ["s0", "s2"]
    assert not (out / "s1.nii.gz").exists()
    assert run(cohort, out, "--part", "2/3") == 0
    written = {path: path.stat().st_mtime_ns for path in out.glob("s*.nii.gz")}
    assert run(cohort, out) == 0
    assert contents(out) == contents(whole)  # the tables of the parts are gone
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in written.items())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_the_pages_cluster_script_joins_to_the_tables_of_one_process(cohort, tmp_path, monkeypatch):
    script = (ROOT / "README.md").read_text("utf-8").split("```\n#!/bin/bash\n")[1].split("```")[0]
    script = script.replace("rois/cohort.csv", str(cohort)).replace("python", sys.executable)
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')  # a stand-in for Slurm's
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    model = WeakUNet((2, 3), rng=np.random.default_rng(0))
    save_checkpoint("runs/mine/best.npz", model)
    jobs = []
    for k in ("1", "2"):
        slurm = {"SLURM_ARRAY_TASK_ID": k, "SLURM_ARRAY_TASK_COUNT": "2", "PYTHONPATH": str(ROOT)}
        env = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        jobs.append(subprocess.Popen(["bash", "-ec", script], env=env, stderr=subprocess.DEVNULL))
    assert [job.wait() for job in jobs] == [0, 0]
    options = ["--model=runs/mine/best.npz", f"--data={cohort}", "--device=cpu", "--jobs=1"]
    for out in ("predictions", "whole"):
        predict.main([*options, f"--out={out}"])
    assert run(cohort, tmp_path / "prepared") == 0
    assert len(read_cohort("prepared/cohort.csv")) == 3
    for name in ("predictions.csv", "detections.csv"):
        assert Path("predictions", name).read_bytes() == Path("whole", name).read_bytes()
    assert not list(Path("predictions").glob("*part*"))


def test_subjects_by_name_and_parts_that_cannot_be(cohort, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(cohort, out, "--subjects", "s2", "s0") == 0
    assert sorted(path.name for path in out.glob("s*.nii.gz")) == ["s0.nii.gz", "s2.nii.gz"]
    assert run(cohort, out, "--part", "1/2", "--invert") == 2  # a part with other settings
    assert "begun with other settings" in capsys.readouterr().err
    assert run(cohort, out) == 0  # subjects by name are no parts of a whole: it makes the rest
    assert subjects(out / "cohort.csv") == ["s0", "s1", "s2"]
    assert not list(out.glob("cohort.subject*"))
    for part in ("4/3", "0/3", "a", "1/2/3"):
        assert run(cohort, out, "--part", part) == 2
        assert "K from 1 to N" in capsys.readouterr().err
    assert run(cohort, out, "--subjects", "s0", "nobody") == 2
    assert "--subjects nobody: no such scan" in capsys.readouterr().err


# -- scans that fail or are odd --------------------------------------------------------------------


def test_failed_scan_is_named_and_the_others_go_on(cohort, tmp_path, capsys):
    (cohort.parent / "s1.nii.gz").write_bytes(b"damaged")
    assert run(cohort, tmp_path / "out", "--jobs", "2") == 2
    errors = capsys.readouterr().err
    assert f"failed: {cohort.parent / 's1.nii.gz'}: " in errors and "1 of 3 scans" in errors
    assert subjects(tmp_path / "out" / "cohort.csv") == ["s0", "s2"]


def test_nan_outside_the_roi_is_0_and_inside_is_refused(cohort, tmp_path, capfd):
    scan = read_cohort(cohort)[1]
    volume, roi = raw_scan(1)
    near = ndimage.binary_dilation(roi.array) & (roi.array == 0)
    outside, inside = np.argwhere(near)[:40], np.argwhere(roi.array)[0]
    volume.array[tuple(outside.T)] = [np.nan, np.inf] * 20
    write_volume(scan.image, volume.array, volume)
    assert run(cohort, tmp_path / "out") == 0
    assert f"note: {scan.image}: 40 NaN voxels" in capfd.readouterr().err
    volume.array[tuple(outside.T)] = 0
    expected = prepare(volume, roi).array
    read = load_scan(read_cohort(tmp_path / "out" / "cohort.csv")[1]).volume.array
    np.testing.assert_allclose(read, expected, atol=1e-7)
    mask = roi.array.astype(np.float32)
    mask[mask == 0] = np.nan  # SPM's masks, too
    write_volume(scan.roi, mask, roi)
    assert np.array_equal(load_scan(scan).volume.array, expected)
    volume.array[tuple(inside)] = np.nan
    write_volume(scan.image, volume.array, volume)
    assert run(cohort, tmp_path / "other") == 2
    assert "NaN or infinite voxels inside the ROI" in capfd.readouterr().err


def test_qform_that_contradicts_the_sform_is_named(cohort, tmp_path, capfd):
    """As in public cohorts whose sform says 1 mm whatever the voxels' size."""
    scan = read_cohort(cohort)[1]
    image = nibabel.load(scan.image)
    image = nibabel.Nifti1Image(image.get_fdata(), image.affine)
    image.set_qform(image.affine * [[2], [1], [1], [1]], 1)
    nibabel.save(image, scan.image)
    assert run(cohort, tmp_path / "out") == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "qform" in line]
    # x ends at 40 + 23 / 2 mm by the sform, twice that by the qform
    assert line.startswith(f"note: {scan.image}: ") and " 51.5 mm apart; the sform is" in line


def test_roi_that_splines_have_been_through_is_refused(cohort, tmp_path, capsys):
    scan = read_cohort(cohort)[2]
    _, roi = raw_scan(2)
    rings = ndimage.zoom(roi.array[::2, ::2, ::2].astype(np.float32), 2, order=3)
    write_volume(scan.roi, rings, roi)
    assert run(cohort, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"{scan.roi}: not a mask: values -0." in message
    assert subjects(tmp_path / "out" / "cohort.csv") == ["s0", "s1"]


def test_scan_without_roi_is_refused_before_anything_is_written(cohort, tmp_path, capsys):
    cohort.write_text(cohort.read_text().replace("s1_roi.nii", ""))
    assert run(cohort, tmp_path / "out") == 2
    assert "'s1' has no roi" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

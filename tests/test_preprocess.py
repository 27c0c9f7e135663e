"""Section 2.1 step by step, and the command: parallel, resumable, a failed scan is named."""

import dataclasses
import gzip
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
from scipy import ndimage, stats

from weakunet import predict, preprocess
from weakunet.data.cohort import Scan, read_cohort, write_cohort
from weakunet.data.load import load_scan, read_raw
from weakunet.data.prepare import (
    change_spacing,
    crop_box,
    dilate_mask,
    invert_contrast,
    prepare,
    put_back,
    smooth_border,
    trim_highest,
    without_strays,
)
from weakunet.data.volumes import Volume, index_to_world, world_to_index, write_volume
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import InputError

AFFINE = np.array([[0.5, 0, 0, 40], [0, 0.6, 0, -30], [0, 0, 0.8, 10], [0, 0, 0, 1]])


def raw_scan(seed=0, shape=(20, 22, 24)):
    """Volumes of a scan and of an ROI in its middle: a block of 4 x 6 x 8 voxels (z, y, x)."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(100, 1000, shape).astype(np.float32)
    roi = np.zeros(shape, np.float32)
    roi[7:11, 8:14, 9:17] = 2  # its box, dilated: [4:14, 5:17, 6:20]
    return Volume(image, AFFINE), Volume(roi, AFFINE)


def test_dilation_is_a_ball():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = mask[4, 4, 7] = True
    z, y, x = np.indices((7, 7, 7)) - 3
    expected = ndimage.binary_dilation(mask, z**2 + y**2 + x**2 <= 3**2)
    assert np.array_equal(dilate_mask(mask, 3), expected)


def test_smoothed_border_follows_the_normal_distribution():
    mask = np.zeros((40, 40, 40), bool)
    mask[:, :, 20:] = True  # a flat border between 19 and 20
    weight = smooth_border(mask)[20, 20, 8:32]
    expected = stats.norm.cdf((np.arange(8, 32) - 19.5) / 2)
    np.testing.assert_allclose(weight, np.where(expected < 0.01, 0, expected), atol=3e-3)
    assert weight[0] == 0 and weight[-1] <= 1
    # exactly, from the formula of the Gaussian
    mask = np.zeros((17, 17, 17), bool)
    mask[5:12, 5:12, 5:12] = True
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    profile = np.convolve(mask[8, 8], kernel / kernel.sum(), "same")
    expected = np.einsum("i,j,k", profile, profile, profile)
    expected[expected < 0.01] = 0
    np.testing.assert_allclose(smooth_border(mask), expected, atol=1e-6)


def test_trimming_counts_the_voxels_inside_only():
    image = np.arange(1, 301, dtype=np.float32).reshape(3, 10, 10)
    inside = image <= 101
    # the 99 % quantile of 1 ... 101 is its 100th value
    trimmed = trim_highest(image, inside)
    assert np.array_equal(trimmed, np.minimum(image, 100))
    assert np.array_equal(image.ravel(), np.arange(1, 301))  # the argument is left alone


def test_inverting_turns_dark_into_bright():
    image = np.arange(0, 101, dtype=np.float32).reshape(1, 1, 101)
    inverted = invert_contrast(image, np.ones(image.shape, bool))
    np.testing.assert_allclose(inverted[0, 0, [0, 33, 99, 100]], [1, 1 - 33 / 99, 0, 0], atol=1e-6)


def test_prepared_scan_is_the_steps_done_one_by_one():
    volume, roi = raw_scan()
    prepared = prepare(volume, roi)
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


def test_lesions_do_not_change_the_gain_where_fluid_fills_more_than_the_trimmed_share():
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


@pytest.fixture
def cohort(tmp_path):
    """A table of three raw scans with ROI and centres; its path."""
    folder = tmp_path / "raw"
    scans = []
    for i in range(3):
        subject = f"s{i}"
        scan = Scan(
            subject,
            folder / f"{subject}.nii.gz",
            i,
            folder / f"{subject}_roi.nii",
            "train",
            folder / f"{subject}.csv",
        )
        volume, roi = raw_scan(i)
        write_volume(scan.image, volume.array, volume)
        write_volume(scan.roi, roi.array > 0, roi)
        scan.centres.write_text("x_mm,y_mm,z_mm\n45,-24,18\n")  # voxel x 10, y 10, z 10
        scans.append(scan)
    write_cohort(folder / "cohort.csv", scans)
    return folder / "cohort.csv"


def run(table, out, *options):
    """Run the command in this process; returns its exit code."""
    try:
        preprocess.main(["--data", str(table), "--out", str(out), "--jobs", "1", *options])
    except SystemExit as stop:
        return stop.code
    return 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


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


def test_scan_stored_in_another_orientation_is_prepared_the_same(cohort, tmp_path):
    assert run(cohort, tmp_path / "one") == 0
    for path in cohort.parent.glob("*.nii*"):
        image = nibabel.load(path)
        xyz_to_file = nibabel.orientations.axcodes2ornt("LIA")
        stored = image.as_reoriented(xyz_to_file)
        assert nibabel.aff2axcodes(stored.affine) != nibabel.aff2axcodes(image.affine)
        content = stored.to_bytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    assert run(cohort, tmp_path / "two") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_workers_give_the_same_bytes_as_one_process(cohort, tmp_path):
    assert run(cohort, tmp_path / "one") == 0
    assert run(cohort, tmp_path / "two", "--jobs", "2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


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


def test_pictures_are_added_to_a_finished_folder_on_request(cohort, tmp_path):
    assert run(cohort, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert run(cohort, tmp_path / "out", "--figures") == 0
    after = contents(tmp_path / "out")
    pictures = {f"s{i}_steps.png" for i in range(3)}
    assert after.keys() - before.keys() == pictures
    assert all(after[name] == before[name] for name in before)
    assert all(after[name][1:4] == b"PNG" for name in pictures)


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


@pytest.mark.parametrize("options", [(), ("--slab-mm", "2")])
def test_corrected_table_is_obeyed_whatever_the_age_of_its_files(cohort, tmp_path, options):
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
            assert run(cohort, tmp_path / name / out, *options) == 0
        one, two = (contents(tmp_path / name / out) for out in ("out", "fresh"))
        assert one == two, name


def test_other_settings_and_a_folder_in_use_are_refused(cohort, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(cohort, out) == 0
    before = contents(out)
    assert run(cohort, out, "--invert") == 2
    assert "settings.json: begun with other settings" in capsys.readouterr().err
    assert contents(out) == before
    assert run(cohort, cohort.parent) == 2  # it would overwrite the raw scans
    assert "holds other files" in capsys.readouterr().err
    assert run(cohort, cohort) == 2
    assert "not a folder" in capsys.readouterr().err
    (out / "settings.json").write_text("{")
    assert run(cohort, out) == 2
    assert json.loads(before["settings.json"])["invert"] is False


def test_parts_side_by_side_join_to_the_table_of_one_process(cohort, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(cohort, whole) == 0
    command = [sys.executable, "-m", "weakunet.preprocess", "--data", cohort, "--out", out]
    parts = [[*command, "--jobs", "1", "--part", f"{k}/3"] for k in (1, 3)]
    jobs = [subprocess.Popen(part, stderr=subprocess.DEVNULL) for part in parts]
    assert [job.wait() for job in jobs] == [0, 0]
    assert not (out / "cohort.csv").exists()
    assert [s.subject for s in read_cohort(out / "cohort.part-3-of-3.csv")] == ["s2"]
    assert run(cohort, out) == 2  # joins and names what is missing
    assert "failed: s1 is missing; run its part again" in capsys.readouterr().err
    assert [s.subject for s in read_cohort(out / "cohort.csv")] == ["s0", "s2"]
    assert not (out / "s1.nii.gz").exists()
    assert run(cohort, out, "--part", "2/3") == 0
    written = {path: path.stat().st_mtime_ns for path in out.glob("s*.nii.gz")}
    assert run(cohort, out) == 0
    assert contents(out) == contents(whole)  # the tables of the parts are gone
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in written.items())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_the_pages_cluster_script_joins_to_the_tables_of_one_process(cohort, tmp_path, monkeypatch):
    root = Path(__file__).parents[1]
    script = (root / "README.md").read_text("utf-8").split("```\n#!/bin/bash\n")[1].split("```")[0]
    script = script.replace("rois/cohort.csv", str(cohort)).replace("python", sys.executable)
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')  # a stand-in for Slurm's
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    model = WeakUNet((2, 3), rng=np.random.default_rng(0))
    save_checkpoint("runs/mine/best.npz", model)
    jobs = []
    for k in ("1", "2"):
        slurm = {"SLURM_ARRAY_TASK_ID": k, "SLURM_ARRAY_TASK_COUNT": "2", "PYTHONPATH": str(root)}
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
    assert [s.subject for s in read_cohort(out / "cohort.csv")] == ["s0", "s1", "s2"]
    assert not list(out.glob("cohort.subject*"))
    for option, text in (
        ("--part", "4/3"),
        ("--part", "0/3"),
        ("--part", "a"),
        ("--part", "1/2/3"),
    ):
        assert run(cohort, out, option, text) == 2
        assert "K from 1 to N" in capsys.readouterr().err
    assert run(cohort, out, "--subjects", "s0", "nobody") == 2
    assert "--subjects nobody: no such scan" in capsys.readouterr().err


def test_failed_scan_is_named_and_the_others_go_on(cohort, tmp_path, capsys):
    (cohort.parent / "s1.nii.gz").write_bytes(b"damaged")
    assert run(cohort, tmp_path / "out", "--jobs", "2") == 2
    errors = capsys.readouterr().err
    assert f"failed: {cohort.parent / 's1.nii.gz'}: " in errors and "1 of 3 scans" in errors
    assert [s.subject for s in read_cohort(tmp_path / "out" / "cohort.csv")] == ["s0", "s2"]
    volume, _ = raw_scan(1)
    write_volume(cohort.parent / "s1.nii.gz", volume.array, volume)
    assert run(cohort, tmp_path / "out") == 0
    assert len(read_cohort(tmp_path / "out" / "cohort.csv")) == 3


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
    assert [s.subject for s in read_cohort(tmp_path / "out" / "cohort.csv")] == ["s0", "s1"]


def test_scan_without_roi_is_refused_before_anything_is_written(cohort, tmp_path, capsys):
    text = cohort.read_text().replace("s1_roi.nii", "")
    cohort.write_text(text)
    assert run(cohort, tmp_path / "out") == 2
    assert "'s1' has no roi" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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

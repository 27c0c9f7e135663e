"""Training repeats, resumes and refuses: the same bits after a kill at any moment."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from weakunet import train
from weakunet.data import load
from weakunet.data.cohort import LoadedScan
from weakunet.data.phantom import simulate_cohort
from weakunet.data.volumes import Volume
from weakunet.detection.predict_scan import predict_scan
from weakunet.gpu import backend
from weakunet.model import WeakUNet
from weakunet.training import loop as training
from weakunet.training import start
from weakunet.training.batches import common_shape, common_spacing, pad_together
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import learning_rate
from weakunet.training.run import Run, warn_if_nothing_learned
from weakunet.training.settings import Settings
from weakunet.util import cli
from weakunet.util.cli import InputError

OPTIONS = "--channels 2 3 --epochs 3 --batch 2 --block 2 --device cpu".split()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A table of 10 prepared scans: bright dots in a dim box, counts with centres."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rows = []
    for i, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        count = i % 3 + 1
        volume = rng.uniform(0.2, 0.4, (8, 9, 10)).astype(np.float32)  # x, y, z
        centres = rng.permutation([(2, 2, 2), (6, 6, 2), (2, 6, 7), (6, 2, 7)])[:count]
        volume[tuple(centres.T)] = 1
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"s{i}.nii.gz")
        np.savetxt(folder / f"s{i}.csv", centres, "%d", ",", header="x_mm,y_mm,z_mm", comments="")
        rows.append((f"s{i}", f"s{i}.nii.gz", count, split, f"s{i}.csv"))
    with open(folder / "cohort.csv", "w", newline="") as file:
        csv.writer(file).writerows([("subject", "image", "count", "split", "centres"), *rows])
    return folder / "cohort.csv"


def run(cohort, out, *more):
    train.main(["--data", str(cohort), "--out", str(out), *OPTIONS, *more])
    return state(out)


def state(out):
    with np.load(out / "last.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["training.history"] = arrays["training.history"][:, :-1]  # all but the seconds
    return arrays


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    """A run that nothing interrupted: its folder and its last.npz."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(cohort, out)


@pytest.fixture(autouse=True)
def no_pictures(finished, monkeypatch):
    """Testing draws a dozen pictures; the tests of training leave that to the `finished` run."""
    monkeypatch.setattr(train, "evaluate_best", lambda *args: None)
    monkeypatch.setattr(train, "training_curves", lambda *args: None)


def test_run_leaves_the_files_that_the_contract_names(finished):
    out, _ = finished
    for name in ("settings.json", "split.csv", "log.csv", "curves.png", "last.npz", "best.npz"):
        assert (out / name).stat().st_size > 0, name
    metrics = json.loads((out / "test" / "metrics.json").read_text())
    assert {"intensities", "regression_fcn"} <= metrics.keys()
    assert {"tpr", "fdr", "fp_per_scan", "tpr_ci95"} <= metrics["regression_fcn"].keys()
    assert {"count_mse", "count_mae", "count_r2", "count_icc"} <= metrics["regression_fcn"].keys()
    assert list((out / "test").glob("*overlay*.png"))
    with open(out / "log.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert not list(out.rglob(".writing-*"))


def test_same_seed_gives_the_same_bits_and_another_seed_others(cohort, finished, tmp_path):
    again = run(cohort, tmp_path / "again")
    assert_same(finished[1], again)
    other = run(cohort, tmp_path / "other", "--seed", "1")
    assert not np.array_equal(other["encoder0.conv0.w"], again["encoder0.conv0.w"])


def test_the_same_loop_runs_over_the_cuda_kernels(cohort, tmp_path, request, monkeypatch):
    """Kernels on the CPU in place of a GPU; their bits do not depend on the threads' order."""
    expected = run(cohort, tmp_path / "numpy", "--epochs", "1")
    gpu = request.getfixturevalue("cuda_on_cpu")
    monkeypatch.setattr(train.backend, "to_device", lambda array, device: np.asarray(array))
    monkeypatch.setattr(train.backend, "cache", lambda volumes, device: volumes)
    monkeypatch.setattr(train.backend, "as_graph", lambda step: step)  # see test_step.py
    states = []
    for gpu.seed in (0, 1):
        states.append(run(cohort, tmp_path / f"kernels{gpu.seed}", "--epochs", "1"))
    assert_same(*states)
    assert ("training/augment", "warp") in gpu.launched
    assert ("layers/optim", "adadelta_update") in gpu.launched
    for name, value in expected.items():
        if name.endswith((".w", ".b")):
            np.testing.assert_allclose(states[0][name], value, atol=1e-4, err_msg=name)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@pytest.mark.parametrize("replaced", range(1, 10))
def test_resume_after_a_kill_before_any_file_is_replaced(
    cohort, finished, tmp_path, monkeypatch, replaced
):
    """Files are written aside and renamed; die at the n-th renaming, then resume."""
    calls = []

    def dying_replace(source, target):
        calls.append(target)
        if len(calls) == replaced:
            raise Killed
        os.rename(source, target)

    monkeypatch.setattr(cli.os, "replace", dying_replace)
    with pytest.raises(Killed):
        run(cohort, tmp_path / "run")
    monkeypatch.undo()
    if not (tmp_path / "run" / "settings.json").exists():
        assert replaced == 1  # nothing was written, so there is nothing to resume
        return
    train.main(["--out", str(tmp_path / "run"), "--resume", "--device", "cpu"])
    assert_same(finished[1], state(tmp_path / "run"))


def test_resume_after_a_real_sigkill(cohort, finished, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "weakunet.train", "--data", str(cohort), "--out", str(out)]
    with subprocess.Popen([*command, *OPTIONS], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (out / "log.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    train.main(["--out", str(out), "--resume", "--device", "cpu"])
    assert_same(finished[1], state(out))


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_ctrl_c_stops_after_the_batch_and_resumes_within_the_epoch(
    cohort, finished, tmp_path, monkeypatch, batches, capsys
):
    asked = []

    def stop(self):
        asked.append(True)
        return len(asked) == batches

    monkeypatch.setattr(train.Interrupt, "__call__", stop)
    with pytest.raises(SystemExit) as exit_:
        run(cohort, tmp_path / "run")
    assert exit_.value.code == 130 and "--resume" in capsys.readouterr().out
    assert int(state(tmp_path / "run")["training.batch"]) == (batches - 1) % 3 + 1
    monkeypatch.undo()
    train.main(["--out", str(tmp_path / "run"), "--resume", "--device", "cpu"])
    assert_same(finished[1], state(tmp_path / "run"))


def fails(capsys, *arguments):
    """Run train with bad input: exit code 2 and one line, which is returned."""
    with pytest.raises(SystemExit) as exit_:
        train.main([str(argument) for argument in arguments])
    captured = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert captured[-1].startswith("error: ") and "Traceback" not in "".join(captured)
    return captured[-1]


def test_folder_that_holds_a_run_is_refused(cohort, finished, capsys):
    line = fails(capsys, "--data", cohort, "--out", finished[0], *OPTIONS)
    assert str(finished[0]) in line and "--resume" in line


def test_folder_that_is_a_file_or_below_one_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(train, "load_scans")
    (tmp_path / "file").write_text("")
    for out in ("file", "file/run", "file/runs/run"):
        assert "file: not a folder" in fails(capsys, "--out", tmp_path / out, "--device", "cpu")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_damaged_last_checkpoint_is_refused_by_name(finished, tmp_path, capsys, damage):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "last.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "missing":
        path.unlink()
    line = fails(capsys, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert "last.npz" in line


def test_checkpoint_of_another_network_is_refused(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    settings["channels"] = [2, 4]
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    line = fails(capsys, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert "last.npz" in line and "another network" in line


@pytest.fixture
def moving(cohort, finished, tmp_path, monkeypatch):
    """A finished run on a cohort of its own, whose table was named as seen from the folder `a`."""
    shutil.copytree(cohort.parent, tmp_path / "cohort")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run("../cohort/cohort.csv", Path("../run"), "--epochs", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resume(*more):
    train.main(["--out", "run", "--resume", "--device", "cpu", *more])


def test_resume_finds_its_cohort_from_any_folder_and_where_it_moved_to(moving, capsys):
    resume()
    (moving / "cohort").rename("moved")
    assert "cohort.csv: no such file" in fails(capsys, "--out", "run", "--resume")
    resume("--data", "moved/cohort.csv")
    resume()  # it was noted


def test_resume_refuses_a_cohort_that_has_changed(moving, capsys):
    table = moving / "cohort" / "cohort.csv"
    before = table.read_text()
    table.write_text(before.replace("s0,s0.nii.gz,1", "s0,s0.nii.gz,2"))
    line = fails(capsys, "--out", "run", "--resume", "--device", "cpu")
    assert "split.csv: the cohort has changed since (s0)" in line
    table.write_text(before)
    image = nibabel.load(moving / "cohort" / "s1.nii.gz")  # one voxel
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] += 0.01
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), moving / "cohort" / "s1.nii.gz")
    line = fails(capsys, "--out", "run", "--resume", "--device", "cpu")
    assert "split.csv: the cohort has changed since (s1)" in line


def test_run_of_an_older_program_resumes_and_notes_the_content(moving):
    path = moving / "run" / "split.csv"
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    cli.write_csv(path, rows[0][:3], [row[:3] for row in rows[1:]])
    resume()
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == rows


def test_resume_refuses_a_phantom_that_has_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "PHANTOM_SCANS", {"train": 2, "val": 1, "test": 1})
    options = ("--channels", "2", "3", "--epochs", "1", "--device", "cpu")
    train.main(["--out", str(tmp_path / "run"), *options])
    simulate = load.simulate_cohort

    def brighter(*arguments, **options):
        cohort = simulate(*arguments, **options)
        cohort["val"][0].volume.array[:] *= 0.999
        return cohort

    monkeypatch.setattr(load, "simulate_cohort", brighter)
    line = fails(capsys, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert "split.csv: the cohort has changed since" in line


def test_settings_file_with_an_unknown_choice_is_refused(finished, tmp_path, capsys):
    settings = json.loads((finished[0] / "settings.json").read_text()) | {"pool": "median"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert "median" in fails(capsys, "--out", tmp_path, "--resume")


def test_test_scans_are_predicted_on_the_device_of_the_run(monkeypatch, tmp_path):
    class Moved(Exception):
        pass

    class Model:
        def to(self, device, precision):
            raise Moved(device)

    monkeypatch.undo()  # of no_pictures, which leaves testing out
    monkeypatch.setattr(train, "load_model", lambda path: Model())
    with pytest.raises(Moved, match="cuda"):
        train.evaluate_best(tmp_path, [], "cuda")


def test_resume_takes_the_settings_of_the_run_and_no_others(moving, capsys):
    resume("--epochs", "1", "--channels", "2", "3")
    arguments = ("--out", "run", "--resume", "--device", "cpu")
    line = fails(capsys, *arguments, "--batch", "4")
    assert "--batch 4: the run of run/settings.json has 2" in line
    resume("--epochs", "2")
    assert "--epochs 1: the run of run/settings.json has 2" in fails(
        capsys, *arguments, "--epochs=1"
    )
    assert "settings.json" in fails(capsys, "--out", "none", "--resume")


def test_resume_without_out_takes_the_default_folder(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--data", str(cohort), *OPTIONS, "--epochs", "1")
    train.main([*options])
    assert "add --resume" in fails(capsys, *options)
    train.main([*options, "--resume"])
    assert "run: runs/cohort-lmax-seed0" in capsys.readouterr().out.replace(os.sep, "/")


def test_finished_run_is_lengthened(cohort, tmp_path, capsys):
    run(cohort, tmp_path / "run")
    train.main(["--out", str(tmp_path / "run"), "--resume", "--device=cpu", "--epochs=10"])
    assert "lengthened from 3 to 10 epochs" in capsys.readouterr().out
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(10)]
    assert [row["lr"] for row in rows] == "1.0 1.0 1.0 1.0 1.0 1.0 1.0 0.3 0.3 0.1".split()
    train.main(["--out", str(tmp_path / "run"), "--resume", "--device=cpu"])
    assert "lengthened" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, value",
    [
        ("--epochs", "0"),
        ("--batch", "0"),
        ("--channels", "0"),
        ("--lr", "nan"),
        ("--lr", "0"),
        ("--eps", "0"),
        ("--rho", "1"),
        ("--scale", "1"),
        ("--rotate-deg", "inf"),
    ],
)
def test_setting_out_of_range_is_refused(cohort, tmp_path, capsys, option, value):
    line = fails(capsys, "--data", cohort, "--out", tmp_path / "run", *OPTIONS, option, value)
    assert option in line


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_that_diverges_ends_in_one_line(cohort, tmp_path, capsys):
    line = fails(capsys, "--data", cohort, "--out", tmp_path / "run", *OPTIONS, "--lr", "1e30")
    assert "diverged in epoch 1" in line and "lower --lr" in line
    assert not (tmp_path / "run" / "best.npz").exists()


def test_device_cuda_without_a_gpu_is_refused(cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("weakunet.gpu.backend._no_gpu_because", lambda: "no GPU was found")
    line = fails(capsys, "--data", cohort, "--out", tmp_path / "run", "--device", "cuda")
    assert "--device cpu" in line


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_that_cannot_be_used_is_not_passed_over_in_silence(tmp_path, monkeypatch, device):
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=OverflowError)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert backend.pick_device(device) == "cuda"

    def version():
        raise RuntimeError("CuPy failed to load libnvrtc.so.12")

    nvrtc.getVersion = version
    with pytest.raises(InputError, match="libnvrtc.so.12; .*--device cpu"):
        backend.pick_device(device)
    monkeypatch.delitem(sys.modules, "cupy")
    error = "raise PermissionError(13, 'Permission denied', '/readonly/.cupy')"
    (tmp_path / "cupy.py").write_text(error)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="^/readonly/.cupy: .*CUPY_CACHE_DIR"):
        backend.pick_device(device)
    assert backend.pick_device("cpu") == "cpu"


@pytest.mark.parametrize(
    "predicted, used, remedy",
    [
        ([0.5, 3.5, 9.5], {}, None),
        ([4.0, 4.0, 4.1], {}, "--epochs 32"),
        ([90.0, 30.0, 0.0], {}, "--epochs 32"),  # spread, but wrong
        ([4.0, 4.0, 4.1], {"pool": "max"}, "--pool lmax"),
        ([4.0, 4.0, 4.1], {"start_from": "none"}, "--start-from auto"),
    ],
)
def test_counts_that_were_not_learned_are_called_out_with_a_remedy(capsys, predicted, used, remedy):
    counts = {"train": np.array([1.0, 2.0]), "val": np.array([0.0, 3.0, 9.0])}
    warn_if_nothing_learned(train.Settings(**used), np.array(predicted), counts)
    out = capsys.readouterr().out
    assert (remedy in out and out.count("\n") == 1) if remedy else out == ""


def test_equal_counts_are_nothing_to_learn_and_one_validation_scan_tells_nothing(capsys):
    settings, one = train.Settings(), np.array([4.0])
    warn_if_nothing_learned(settings, one, {"train": np.array([1.0, 2.0]), "val": one})
    assert capsys.readouterr().out == ""
    warn_if_nothing_learned(settings, one, {"train": np.full(3, 2.0), "val": one})
    assert "every training scan has the count 2" in capsys.readouterr().out


def test_scans_of_different_voxel_sizes_are_refused(cohort, tmp_path, capsys):
    rng = np.random.default_rng(0)
    sizes = ((0.8, 0.5, 0.5), (0.81, 0.5, 0.49), (0.8, 0.5, 0.55))
    scans = [
        LoadedScan(f"s{i}", Volume(rng.random((4, 4, 4)), np.diag([*mm[::-1], 1])), i)
        for i, mm in enumerate(sizes)
    ]
    assert common_spacing(scans[:2]) == pytest.approx(sizes[0])
    with pytest.raises(cli.InputError, match="s2: .* --spacing-mm 0.8 0.5 0.5"):
        common_spacing(scans)


def test_volumes_are_padded_at_the_end_to_sizes_that_divide():
    volumes = [np.ones((3, 4, 5)), np.full((2, 6, 1), 2.0)]
    assert common_shape(volumes, 4) == (4, 8, 8)
    stacked = pad_together(volumes, (4, 8, 8))
    assert stacked.shape == (2, 4, 8, 8)
    assert stacked[0].sum() == 60 and stacked[0, :3, :4, :5].all()
    assert stacked[1].sum() == 24 and (stacked[1, :2, :6, :1] == 2).all()


def test_scans_of_one_slice_are_moved_within_it_only(monkeypatch, tmp_path):
    rng, seen = np.random.default_rng(0), []
    scans = [
        LoadedScan(f"s{i}", Volume(rng.uniform(0.5, 1, (1, 8, 8)).astype("f4"), np.eye(4)), i)
        for i in range(4)
    ]
    warp = training.warp

    def keep(volumes, matrices):
        moved = warp(volumes, matrices)
        seen.extend(moved)
        return moved

    monkeypatch.setattr(training, "warp", keep)
    settings = Settings(epochs=4, batch=2, channels=(2, 3, 4), block=2)
    model = WeakUNet(settings.channels, rng=np.random.default_rng(0))
    training.train(Run(model, settings, tmp_path), {"train": scans, "val": scans})
    assert len(seen) == 16
    for volume in seen:  # padded to four slices; at most two lines and columns are shifted out
        assert volume.shape == (4, 8, 8) and not volume[[0, 1, 3]].any()
        assert np.count_nonzero(volume[2]) >= 36
    assert any(not np.array_equal(volume[2], seen[0][2]) for volume in seen)


def test_gaussian_head_leaves_the_last_layer_as_drawn(cohort, tmp_path):
    drawn = WeakUNet([2, 3], 1, "lmax", 2, rng=np.random.default_rng([0, 0])).params["linear.w"]
    kept = run(cohort, tmp_path / "gaussian", "--gaussian-head", "--lr", "1e-30")["linear.w"]
    np.testing.assert_array_equal(kept, drawn)
    started = run(cohort, tmp_path / "level", "--lr", "1e-30")["linear.w"]
    assert (started > 0).all() and not np.allclose(started, np.abs(drawn))


@pytest.mark.parametrize("head", [[], ["--gaussian-head"]])
def test_every_epoch_ends_with_the_level_right_on_the_training_scans(cohort, tmp_path, head):
    run(cohort, tmp_path / "run", *head)
    model = load_model(tmp_path / "run" / "last.npz")
    scans = load.load_scans(Settings(data=str(cohort)), ("train",))["train"]
    missing = np.mean([scan.count - predict_scan(model, scan.volume)[0] for scan in scans])
    assert (abs(missing) < 1e-4) == (not head)


def test_start_from_takes_the_weights_of_the_same_network_only(cohort, finished, tmp_path, capsys):
    best = finished[0] / "best.npz"
    run(cohort, tmp_path / "run", "--start-from", str(best), "--lr", "1e-30")
    with np.load(best) as trained, np.load(tmp_path / "run" / "last.npz") as kept:
        np.testing.assert_array_equal(kept["encoder0.conv0.w"], trained["encoder0.conv0.w"])
    options = ("--data", cohort, "--out", tmp_path / "other", "--start-from", best)
    assert "another network" in fails(capsys, *options)
    assert "no such checkpoint" in fails(capsys, *options[:-1], tmp_path / "none.npz")


def test_large_volumes_start_from_weights_that_learned_on_small_ones(tmp_path, capsys, monkeypatch):
    settings = Settings()
    scans = simulate_cohort("tiny", {"train": 2}, 0)["train"]
    where = tmp_path, "cpu", "fp32", lambda: False

    def starts(settings):
        return start.starting_weights(settings, scans, *where)

    assert starts(settings) is None and starts(Settings(start_from="here.npz")).name == "here.npz"
    monkeypatch.setattr(start, "LARGE_VOX", scans[0].volume.array.size)
    assert starts(settings) == start.SHIPPED and "--start-from none" in capsys.readouterr().out
    run = Run(start.new_network(settings), settings, tmp_path)
    run.start_from(start.SHIPPED)
    assert run.learned_elsewhere and run.model.global_pool.blocks > 1
    assert starts(Settings(start_from="none")) is starts(Settings(gaussian_head=True)) is None


def test_other_networks_learn_on_small_scans_first_and_once(tmp_path, monkeypatch):
    small = simulate_cohort("tiny", {"train": 4, "val": 2}, 0)
    monkeypatch.setattr(start, "LARGE_VOX", 1)
    loaded = []
    monkeypatch.setattr(start, "load_scans", lambda *asked: loaded.append(asked) or small)
    settings = Settings(channels=(2, 3), epochs=5)
    wanted = settings, small["train"], tmp_path, "cpu", "fp32"
    assert start.starting_weights(*wanted, lambda: True) is None  # interrupted
    path = start.starting_weights(*wanted, lambda: False)
    assert path == tmp_path / "start-2-3-x1-lmax8" / "best.npz" and len(loaded) == 2
    assert load_model(path).settings["channels"] == [2, 3]
    assert start.starting_weights(*wanted, lambda: False) == path and len(loaded) == 2


def test_learning_rate_falls_at_70_and_90_percent():
    settings = Settings(epochs=10, lr=2.0)
    rates = [learning_rate(settings, epoch) for epoch in range(10)]
    np.testing.assert_allclose(rates, [2.0] * 7 + [0.6] * 2 + [0.2])

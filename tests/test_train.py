"""The training command: its files, the same bits after a stop or kill at any time, refusals."""

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
from helpers import refusal, rows, save, state

from weakunet import train
from weakunet.data import load
from weakunet.detection.predict_scan import predict_scan
from weakunet.gpu import backend
from weakunet.layers.loss import mse_backward
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import COMMON
from weakunet.training.settings import Settings
from weakunet.util import cli
from weakunet.util.cli import InputError

OPTIONS = "--channels 2 3 --epochs 3 --batch 2 --block 2 --device cpu".split()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A table of 10 prepared scans: bright dots in a dim box, counts with centres."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    table = []
    for i, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        count = i % 3 + 1
        volume = rng.uniform(0.2, 0.4, (8, 9, 10)).astype(np.float32)  # x, y, z
        centres = rng.permutation([(2, 2, 2), (6, 6, 2), (2, 6, 7), (6, 2, 7)])[:count]
        volume[tuple(centres.T)] = 1
        save(folder / f"s{i}.nii.gz", volume, np.eye(4))
        cli.write_csv(folder / f"s{i}.csv", ("x_mm", "y_mm", "z_mm"), centres)
        table.append((f"s{i}", f"s{i}.nii.gz", count, split, f"s{i}.csv"))
    header = ("subject", "image", "count", "split", "centres")
    cli.write_csv(folder / "cohort.csv", header, table)
    return folder / "cohort.csv"


def run(cohort, out, *more):
    train.main(["--data", str(cohort), "--out", str(out), *OPTIONS, *more])
    return state(out)


def resume(out, *more):
    train.main(["--out", str(out), "--resume", "--device", "cpu", *more])
    return state(out)


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
    assert [row["epoch"] for row in rows(out / "log.csv")] == ["1", "2", "3"]
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
    """Files are written under another name and then renamed: die at the n-th time, then resume."""
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
    assert_same(finished[1], resume(tmp_path / "run"))


def test_resume_after_a_real_sigkill(cohort, finished, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "weakunet.train", "--data", str(cohort), "--out", str(out)]
    with subprocess.Popen([*command, *OPTIONS], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (out / "log.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert_same(finished[1], resume(out))


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
    assert_same(finished[1], resume(tmp_path / "run"))


# -- what a resumed run must find again ------------------------------------------------------------


@pytest.fixture
def moving(cohort, finished, tmp_path, monkeypatch):
    """A finished run on a cohort of its own, whose table was named as seen from the folder `a`."""
    shutil.copytree(cohort.parent, tmp_path / "cohort")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run("../cohort/cohort.csv", Path("../run"), "--epochs", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


AGAIN = "--out", "run", "--resume", "--device", "cpu"


def test_resume_finds_its_cohort_from_any_folder_and_where_it_moved_to(moving, capsys):
    resume("run")
    (moving / "cohort").rename("moved")
    assert "cohort.csv: no such file" in refusal(capsys, train.main, *AGAIN)
    resume("run", "--data", "moved/cohort.csv")
    resume("run")  # it was noted


def test_resume_refuses_a_cohort_that_has_changed(moving, capsys):
    table, image = moving / "cohort" / "cohort.csv", moving / "cohort" / "s1.nii.gz"
    before = table.read_text()
    table.write_text(before.replace("s0,s0.nii.gz,1", "s0,s0.nii.gz,2"))
    line = refusal(capsys, train.main, *AGAIN)
    assert "split.csv: the cohort has changed since (s0)" in line
    table.write_text(before)
    voxels = nibabel.load(image).get_fdata(dtype=np.float32)
    voxels[0, 0, 0] += 0.01  # one voxel
    save(image, voxels, np.eye(4))
    line = refusal(capsys, train.main, *AGAIN)
    assert "split.csv: the cohort has changed since (s1)" in line


def test_run_of_an_older_program_resumes_and_notes_the_content(moving):
    path = moving / "run" / "split.csv"
    with open(path, newline="") as file:
        header, *noted = list(csv.reader(file))
    before = path.read_text()
    cli.write_csv(path, header[:3], [row[:3] for row in noted])
    resume("run")
    assert path.read_text() == before


def test_resume_refuses_a_phantom_that_has_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "PHANTOM_SCANS", {"train": 2, "val": 1, "test": 1})
    monkeypatch.chdir(tmp_path)
    train.main(["--out", "run", "--channels", "2", "3", "--epochs", "1", "--device", "cpu"])
    simulate = load.simulate_cohort

    def brighter(*arguments, **options):
        cohort = simulate(*arguments, **options)
        cohort["val"][0].volume.array[:] *= 0.999
        return cohort

    monkeypatch.setattr(load, "simulate_cohort", brighter)
    assert "split.csv: the cohort has changed since" in refusal(capsys, train.main, *AGAIN)


def test_resume_takes_the_settings_of_the_run_and_no_others(moving, capsys):
    resume("run", "--epochs", "1", "--channels", "2", "3")
    line = refusal(capsys, train.main, *AGAIN, "--batch", "4")
    assert "--batch 4: the run of run/settings.json has 2" in line
    resume("run", "--epochs", "2")
    line = refusal(capsys, train.main, *AGAIN, "--epochs=1")
    assert "--epochs 1: the run of run/settings.json has 2" in line
    assert "settings.json" in refusal(capsys, train.main, "--out", "none", "--resume")


def test_resume_without_out_takes_the_default_folder(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--data", str(cohort), *OPTIONS, "--epochs", "1")
    train.main([*options])
    assert "add --resume" in refusal(capsys, train.main, *options)
    train.main([*options, "--resume"])
    assert "run: runs/cohort-lmax-seed0" in capsys.readouterr().out.replace(os.sep, "/")


def test_finished_run_is_lengthened_and_its_learning_rate_falls_at_70_and_90_percent(
    cohort, tmp_path, capsys
):
    run(cohort, tmp_path / "run")
    resume(tmp_path / "run", "--epochs=10")
    assert "lengthened from 3 to 10 epochs" in capsys.readouterr().out
    log = rows(tmp_path / "run" / "log.csv")
    assert [row["epoch"] for row in log] == [str(i + 1) for i in range(10)]
    assert [row["lr"] for row in log] == "1.0 1.0 1.0 1.0 1.0 1.0 1.0 0.3 0.3 0.1".split()
    resume(tmp_path / "run")
    assert "lengthened" not in capsys.readouterr().out


def flipped(old):
    return old[: len(old) // 2] + bytes([old[len(old) // 2] ^ 255]) + old[len(old) // 2 + 1 :]


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("last.npz", lambda old: old[: len(old) // 2], "last.npz: damaged"),
        ("last.npz", flipped, "last.npz: damaged"),
        ("last.npz", lambda old: b"", "last.npz: damaged"),
        ("last.npz", lambda old: None, "last.npz: no such"),
        ("settings.json", lambda old: old.replace(b"3\n", b"4\n"), "last.npz: cannot be resumed"),
        ("settings.json", lambda old: old.replace(b"lmax", b"median"), "settings.json: damaged"),
    ],
)
def test_run_that_cannot_resume_is_refused_by_name(finished, tmp_path, capsys, name, change, said):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    resumed = ("--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert said in refusal(capsys, train.main, *resumed)


# -- the weights, first and last -------------------------------------------------------------------


@pytest.mark.parametrize("head", [[], ["--gaussian-head"]])
def test_the_best_network_is_right_on_average_and_b_stays_0_while_it_learns(cohort, tmp_path, head):
    b = run(cohort, tmp_path / "run", *head)["linear.b"]
    model = load_model(tmp_path / "run" / "best.npz")
    scans = load.load_scans(Settings(data=str(cohort)), ("train",))["train"]
    y = np.array([predict_scan(model, scan.volume)[0] for scan in scans])
    error = y.mean() - np.mean([scan.count for scan in scans])
    assert (abs(error) < 1e-5) == (b == 0) == (not head)


@pytest.mark.parametrize(
    "options, weight", [([], COMMON), (["--pool", "max"], 1), (["--gaussian-head"], 1)]
)
def test_loss_is_the_papers_with_its_pooling_or_its_last_layer(
    cohort, tmp_path, monkeypatch, options, weight
):
    seen = []

    def gradient(y, t, common, bound):
        seen.append(common)
        return mse_backward(y, t, common, bound)

    monkeypatch.setattr("weakunet.training.run.mse_backward", gradient)
    run(cohort, tmp_path / "run", *options)
    assert set(seen) == {weight}


def test_the_scale_is_fitted_for_best_npz_and_training_goes_on_without_it(cohort, tmp_path):
    learned = run(cohort, tmp_path / "run", "--lr", "1e-30")["linear.w"]
    with np.load(tmp_path / "run" / "best.npz") as best:
        scale = best["linear.w"] / learned
    assert abs(scale[0] - 1) > 0.01
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)


def test_gaussian_head_leaves_the_last_layer_as_drawn(cohort, tmp_path):
    drawn = WeakUNet([2, 3], 1, "lmax", 2, rng=np.random.default_rng([0, 0])).params["linear.w"]
    kept = run(cohort, tmp_path / "gaussian", "--gaussian-head", "--lr", "1e-30")["linear.w"]
    np.testing.assert_array_equal(kept, drawn)
    started = run(cohort, tmp_path / "level", "--lr", "1e-30")["linear.w"]
    assert (started > 0).all() and not np.allclose(started, np.abs(drawn))


def test_start_from_takes_the_weights_of_the_same_network_only(cohort, finished, tmp_path, capsys):
    best = finished[0] / "best.npz"
    with np.load(best) as file:
        trained = dict(file)
    trained["linear.b"] += 5  # of a network that learned its b
    np.savez(tmp_path / "earlier.npz", **trained)
    kept = run(
        cohort, tmp_path / "run", "--start-from", str(tmp_path / "earlier.npz"), "--lr", "1e-30"
    )
    np.testing.assert_array_equal(kept["encoder0.conv0.w"], trained["encoder0.conv0.w"])
    assert kept["linear.b"] == 0
    options = ("--data", cohort, "--out", tmp_path / "other", "--start-from")
    assert "another network" in refusal(capsys, train.main, *options, best)
    assert "no such checkpoint" in refusal(capsys, train.main, *options, tmp_path / "none.npz")


# -- what is refused before anything is trained ----------------------------------------------------


def test_folder_of_a_run_and_a_file_are_refused_at_once(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(train, "load_scans")
    (tmp_path / "file").write_text("")
    line = refusal(capsys, train.main, "--out", finished[0], "--device", "cpu")
    assert str(finished[0]) in line and "--resume" in line
    for out in ("file", "file/run", "file/runs/run"):
        line = refusal(capsys, train.main, "--out", tmp_path / out, "--device", "cpu")
        assert "file: not a folder" in line


@pytest.mark.parametrize(
    "setting",
    "epochs=0 batch=0 channels=0 lr=nan lr=0 eps=0 rho=1 scale=1 rotate-deg=inf".split(),
)
def test_setting_out_of_range_is_refused(tmp_path, monkeypatch, capsys, setting):
    monkeypatch.delattr(train, "load_scans")
    line = refusal(capsys, train.main, "--out", tmp_path / "run", f"--{setting}")
    assert f"--{setting.split('=')[0]} " in line and "must be a number from" in line


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_that_diverges_ends_in_one_line(cohort, tmp_path, capsys):
    rates = "--lr=1e30", "--rotate-deg=0"
    options = ("--data", cohort, "--out", tmp_path / "run", *OPTIONS, *rates)
    line = refusal(capsys, train.main, *options)
    assert "diverged in epoch 1" in line and "lower --lr" in line
    assert not (tmp_path / "run" / "best.npz").exists()


def test_device_cuda_without_a_gpu_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("weakunet.gpu.backend._no_gpu_because", lambda: "no GPU was found")
    line = refusal(capsys, train.main, "--out", tmp_path / "run", "--device", "cuda")
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

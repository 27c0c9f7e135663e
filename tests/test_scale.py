"""Long cohorts: memory does not grow with them, and a killed prediction resumes."""

import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from helpers import contents, exit_code, rows

from weakunet import evaluate, predict
from weakunet.data import load
from weakunet.data.cohort import LoadedScan, Scan, write_cohort
from weakunet.data.volumes import Volume, index_to_world, write_volume
from weakunet.evaluation.evaluator import evaluate_cases, evaluate_maps
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import write_csv

AFFINE = np.diag([0.5, 0.5, 0.8, 1.0])


def prepared_volume(seed):
    array = np.random.default_rng(seed).uniform(0.1, 1, (8, 9, 10)).astype(np.float32)
    array[0, 0, 0] = 0
    return Volume(array, AFFINE)


@pytest.fixture
def cohort(tmp_path):
    """A table of 10 prepared scans, the last first, with a lesion each, and m.npz; the folder."""
    rng = np.random.default_rng(0)
    model = WeakUNet(channels=(2, 3), rng=rng)
    model.params["linear.b"][:] = 2
    save_checkpoint(tmp_path / "m.npz", model)
    scans = []
    for i in range(10):
        volume = prepared_volume(i)
        paths = {"image": tmp_path / f"s{i:02d}.nii.gz", "centres": tmp_path / f"s{i:02d}.csv"}
        scan = Scan(f"s{i:02d}", count=1, split="test", **paths)
        write_volume(scan.image, volume.array, volume)
        centres_mm = index_to_world(volume, rng.uniform(1, 7, (1, 3)))
        write_csv(scan.centres, ("x_mm", "y_mm", "z_mm"), centres_mm)
        scans.append(scan)
    write_cohort(tmp_path / "cohort.csv", scans[::-1])
    return tmp_path


def command(folder, out, *options):
    named = {"model": folder / "m.npz", "data": folder / "cohort.csv", "out": folder / out}
    return [*(f"--{name}={path}" for name, path in named.items()), "--device=cpu", *options]


def run(folder, out, *options):
    return exit_code(predict.main, *command(folder, out, "--jobs=1", *options))


# -- killed, and resumed --------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="kills a group of processes")
def test_killed_prediction_resumes_with_the_bytes_of_one_process(cohort):
    out = cohort / "out"
    arguments = [sys.executable, "-m", "weakunet.predict", *command(cohort, "out", "--jobs=2")]
    process = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob(".done/[!.]*.json"))) < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.stem: path for path in out.glob(".done/[!.]*.json")}
    assert 2 <= len(done) < 10 and not (out / "predictions.csv").exists()
    (out / ".writing-abc.nii.gz").write_bytes(b"half")  # as a kill at another moment leaves
    images = [path for path in out.glob("s*") if path.name[:3] in done]
    written = {path: path.stat().st_mtime_ns for path in images}
    assert len(written) == 4 * len(done)
    assert run(cohort, "out") == 0
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in written.items())
    assert run(cohort, "whole") == 0
    assert contents(out) == contents(cohort / "whole")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".writing-")}
    assert len(names) == 4 * 10 + 4 and names >= {"settings.json", ".done"}


def predicted_now(cohort, monkeypatch, most=10, code=0):
    """Resume for `most` scans, as if killed then; the subjects that are predicted on."""
    subjects, write = [], predict.write_prediction

    def watch(scan, *arguments, **options):
        if len(subjects) == most:
            raise KeyboardInterrupt
        subjects.append(scan.subject)
        return write(scan, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_prediction", watch)
        assert run(cohort, "out") == code
    return subjects


def test_scan_whose_source_changed_or_result_is_gone_is_done_again(
    cohort, no_pictures, monkeypatch
):
    """A row that named the wrong image, too: the right one is older than the prediction."""
    assert predicted_now(cohort, monkeypatch, 5, 130) == "s09 s08 s07 s06 s05".split()
    table = cohort / "cohort.csv"
    table.write_text(table.read_text().replace("s09.nii.gz", "s04.nii.gz"))
    volume = prepared_volume(99)
    write_volume(cohort / "s08.nii.gz", volume.array, volume)
    (cohort / "out" / "s07_lesions.nii.gz").unlink()
    (cohort / "out" / ".done" / "s06.json").write_text("{")
    again = predicted_now(cohort, monkeypatch)
    assert again == "s09 s08 s07 s06 s04 s03 s02 s01 s00".split()
    assert predicted_now(cohort, monkeypatch) == []  # finished
    assert run(cohort, "whole") == 0
    assert contents(cohort / "out") == contents(cohort / "whole")


def test_other_model_or_settings_are_refused(cohort, no_pictures, monkeypatch, capsys):
    predicted_now(cohort, monkeypatch, 2, 130)
    before = contents(cohort / "out" / ".done")
    assert run(cohort, "out", "--invert") == 2
    assert "begun with other settings, invert False (now True)" in capsys.readouterr().err
    save_checkpoint(cohort / "m.npz", WeakUNet((2, 3), rng=np.random.default_rng(1)))
    assert run(cohort, "out") == 2
    assert run(cohort, "new") == 0  # and in this process it is read anew
    old, new = (cohort / name / "s09_heatmap.nii.gz" for name in ("out", "new"))
    assert old.read_bytes() != new.read_bytes()
    assert len(before) == 2 and contents(cohort / "out" / ".done") == before


def test_parts_side_by_side_give_the_tables_of_one_run(cohort, no_pictures, capsys):
    """One part fails at first: the join names its scan and leaves it out."""
    image = (cohort / "s05.nii.gz").read_bytes()
    (cohort / "s05.nii.gz").write_bytes(b"damaged")
    assert run(cohort, "out", "--part", "1/3") == 0
    (cohort / "out" / ".writing-abc").write_text("half")  # of another part
    assert run(cohort, "out", "--part", "2/3") == 2
    assert run(cohort, "out", "--subjects", "s07", "s04", "s01") == 0
    assert (cohort / "out" / ".writing-abc").exists()
    assert not (cohort / "out" / "predictions.csv").exists()
    capsys.readouterr()
    assert run(cohort, "out") == 2
    errors = capsys.readouterr().err
    assert len(rows(cohort / "out" / "predictions.csv")) == 9
    assert "failed: s05 is missing" in errors and "1 of 10 scans failed" in errors
    (cohort / "s05.nii.gz").write_bytes(image)
    assert run(cohort, "out", "--part", "2/3") == 0
    assert run(cohort, "out") == 0
    assert run(cohort, "whole") == 0
    assert contents(cohort / "out") == contents(cohort / "whole")


# -- memory ---------------------------------------------------------------------------------


class Alive:
    """Counts the arrays that are alive at once."""

    def __init__(self):
        self.references, self.most = [], 0

    def watch(self, array):
        self.references = [own for own in self.references if own() is not None]
        self.references.append(weakref.ref(array))
        self.most = max(self.most, len(self.references))
        return array


def test_prediction_holds_one_scan_at_a_time(cohort, no_pictures, monkeypatch):
    alive, read = Alive(), load.read_prepared

    def read_prepared(scan):
        volume = read(scan)
        alive.watch(volume.array)
        return volume

    monkeypatch.setattr(load, "read_prepared", read_prepared)
    assert run(cohort, "out") == 0
    assert 1 <= alive.most <= 2


def test_evaluation_holds_one_scan_at_a_time():
    alive = Alive()

    def case(i):
        volume, rng = prepared_volume(i), np.random.default_rng(i)
        heatmap = rng.normal(size=volume.array.shape).astype(np.float32)
        alive.watch(heatmap)
        scan = LoadedScan(f"s{i}", volume, 2, rng.uniform(0, 7, (2, 3)))
        return scan, {"regression_fcn": heatmap}, {"regression_fcn": 2.2}

    cases = [lambda i=i: case(i) for i in range(12)]
    streamed = evaluate_cases(cases)
    assert 1 <= alive.most <= 2
    scans, maps, _ = zip(*(case(i) for i in range(12)), strict=True)
    in_memory = evaluate_maps(
        scans, [2.2] * 12, {"regression_fcn": [own["regression_fcn"] for own in maps]}
    )
    for name in ("metrics", "curves", "by_threshold", "scores"):
        assert repr(getattr(streamed, name)) == repr(getattr(in_memory, name))  # NaN as well


def test_many_prepared_scans_are_evaluated_from_files(cohort, no_pictures):
    """From the prediction's folder to the tables, and the subjects keep the cohort's order."""
    assert run(cohort, "out") == 0
    places = {"predictions": "out", "data": "cohort.csv", "out": "evaluated"}
    options = [f"--{name}={cohort / path}" for name, path in places.items()]
    assert exit_code(evaluate.main, *options, "--jobs=1") == 0
    subjects = [f"s{i:02d}" for i in range(9, -1, -1)]
    assert [row["subject"] for row in rows(cohort / "out" / "predictions.csv")] == subjects
    found = [row["subject"] for row in rows(cohort / "evaluated" / "per_scan.csv")]
    assert found == 2 * subjects

"""The whole comparison on a few scans and one epoch: what it writes, and that it resumes."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import refusal, rows, state

from weakunet.compare import __main__ as compare
from weakunet.compare import jobs, methods, tables
from weakunet.compare.cohorts import COHORTS, FIRST_SEED, Cohort
from weakunet.data.cohort import LoadedScan
from weakunet.data.volumes import Volume
from weakunet.training import checkpoint
from weakunet.training.settings import Settings
from weakunet.util import resume

FEW = {"train": 4, "val": 3, "test": 3}


def run(out, *more):
    compare.main(["--out", str(out), "--epochs", "1", "--jobs", "1", *more])


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setitem(COHORTS, "quick", Cohort("tiny", FEW, {}, 1))


def test_only_our_pooling_learns_with_rotations():
    planned = jobs.flat(jobs.plan(compare.parse_arguments([]), "cpu"))
    turned = {job.name.partition("-seed")[0] for job in planned if job.settings.rotate_deg}
    assert turned == {"lmax-fcn", "lmax-coarse"}


def test_compare_writes_what_it_names_and_repeats_its_bits(tmp_path, few, capsys):
    run(tmp_path / "a")
    printed = capsys.readouterr().out
    for name in (*methods.METHODS.values(), *methods.UPPER_BOUND.values()):
        assert name in printed
    written = {path.name for path in (tmp_path / "a").iterdir()}
    assert written >= {"table1.csv", "table1.md", "metrics.json", "per_scan.csv", "report.html"}
    assert written >= {"figure2.png", "figure3.png", "figure3_maps.png", "counts.png"}
    table = rows(tmp_path / "a" / "table1.csv")
    assert [row["method"] for row in table if row["pooling"] == "max"] == list(methods.METHODS)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert {*methods.METHODS, "regression_fcn_max"} <= set(metrics)
    per_scan = rows(tmp_path / "a" / "per_scan.csv")
    assert len(per_scan) == FEW["test"] * (7 + 6)
    for row in per_scan:  # every lesion is found or missed
        assert int(row["tp"]) + int(row["fn"]) == int(row["count"])
    before = (tmp_path / "a" / "table1.csv").read_bytes()
    weights = tmp_path / "a" / "networks" / f"lmax-fcn-seed{FIRST_SEED}" / "best.npz"
    trained = weights.stat().st_mtime_ns
    run(tmp_path / "a")  # nothing is trained again
    assert weights.stat().st_mtime_ns == trained
    assert (tmp_path / "a" / "table1.csv").read_bytes() == before
    run(tmp_path / "b")
    assert (tmp_path / "b" / "table1.csv").read_bytes() == before


def test_compare_refuses_a_folder_of_another_comparison(tmp_path, few, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert str(tmp_path) in refusal(capsys, compare.main, "--out", tmp_path)


def test_a_stopped_network_resumes_with_the_same_bits(tmp_path):
    def job(out, kind):
        settings = Settings(seed=3, epochs=2, batch=2)
        return jobs.Job(kind, settings, FEW, tmp_path / out)

    for kind in ("fcn", "coarse", "voxelwise"):
        whole, parts = job("whole", kind), job("parts", kind)
        assert not jobs.train_network(whole)
        (tmp_path / "parts").mkdir(exist_ok=True)
        parts.stop_file.touch()
        assert jobs.train_network(parts)  # stops after a batch
        assert not parts.noted("done", "best.npz")
        parts.stop_file.unlink()
        assert not jobs.train_network(parts)
        expected, found = state(whole.folder), state(parts.folder)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_network_is_kept_while_its_settings_and_scans_are_the_same(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"one")
    (tmp_path / "cohort.csv").write_text("subject,image,count\ns,scan.nii.gz,1\n")
    for data in (None, str(tmp_path / "cohort.csv")):
        job = jobs.Job("fcn", Settings(seed=3, data=data), FEW, tmp_path)
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "best.npz").touch()
        job.note("done", resume.inputs(*job.made_from()), {"cpu_seconds": 1.5})
        assert job.noted("done", "best.npz") == {"cpu_seconds": 1.5}
        for other in ({"n": {"train": 5}}, {"settings": Settings(seed=3, data=data, epochs=3)}):
            assert dataclasses.replace(job, **other).noted("done", "best.npz") is None
    (tmp_path / "scan.nii.gz").write_bytes(b"two")
    assert job.noted("done", "best.npz") is None


def test_small_first_starts_from_the_small_networks_weights(tmp_path):
    settings = Settings(seed=3, epochs=1, lr=1e-30, gaussian_head=True)
    small = jobs.Job("fcn", settings, FEW, tmp_path / "small")
    large = jobs.Job("fcn", settings, FEW, tmp_path, first=small)
    other = Settings(seed=4, epochs=1, lr=1e-30, gaussian_head=True)
    other = jobs.Job("fcn", other, FEW, tmp_path)
    for j in (large, other):
        jobs.train_network(j)
    first, same, unlike = (
        checkpoint.load_model(j.folder / "best.npz").params["encoder0.conv0.w"]
        for j in (small, large, other)
    )
    assert np.array_equal(first, same) and not np.array_equal(first, unlike)


def test_the_example_is_chosen_by_the_truth_alone():
    volume = Volume(np.ones((4, 4, 4), np.float32), np.eye(4))
    scans = [LoadedScan(f"s{n}", volume, n, np.zeros((n, 3))) for n in (9, 1, 5, 3, 7)]
    assert len(scans[methods.choose_example(scans)].centres_zyx) == 9


def test_markdown_table_states_the_papers_figures(tmp_path):
    row = dict.fromkeys(("fdr", "tpr_true", "fp_true", "froc_area", "tpr_at_limit"), 0.5)
    row |= {"tpr": 0.625, "tpr_ci95": [0.5, 0.75], "fp_per_scan": 1.0, "fp_per_scan_ci95": [0, 2]}
    row |= {"tpr_minus_best": 0.0, "tpr_minus_best_ci95": [0, 0], "fdr_ci95": [0, 1]}
    text = tables.markdown_table({"max": {"regression_fcn": row}})
    assert "62.5 [50.0, 75.0]" in text and "54.8 / 1.9 / 37.7" in text

"""The CPU benchmark: its rows, its check of every result, its arithmetic."""

import importlib.util
import json

import numpy as np
import pytest

from weakunet.bench import __main__ as bench
from weakunet.bench import cpu as bench_cpu


def test_rows_have_what_the_json_promises(tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--only", "conv 16->32 forward", "--threads", "1", "--rounds", "1"]
    bench.main(["--cpu", *arguments, "--json", str(path)])
    (row,) = json.loads(path.read_text())
    assert row["name"] == "conv 16->32 forward" and row["size"] == "4x4x8x8"
    assert row["device"] == "cpu" and row["threads"] == 1 and row["ours_s"] > 0
    has_torch = importlib.util.find_spec("torch") is not None
    assert (row["ratio"] is not None) == (row["torch_s"] is not None) == has_torch
    flop = 2 * 27 * 16 * 32 * 4 * 4 * 8 * 8
    assert row["gflops"] == pytest.approx(flop / row["ours_s"] / 1e9)
    assert "conv 16->32 forward" in capsys.readouterr().out


def test_ratio_is_the_median_over_rounds_against_the_faster_path():
    times = {"ours": [1.0, 2.0, 9.0], "default": [9.0, 9.0, 9.0], "channels_last": [2.0, 1.0, 3.0]}
    row = bench_cpu._row("x", "1", 1, None, 1.0, times)
    assert row["torch_s"] == 2.0 and row["ratio"] == 2.0  # of 1/2, 2/1 and 9/3


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_wrong_result_is_refused_before_it_is_timed(wrong, monkeypatch):
    forward = bench_cpu.conv3d_fast.forward
    monkeypatch.setattr(bench_cpu.conv3d_fast, "forward", lambda *a: forward(*a) * wrong)
    with pytest.raises(AssertionError, match="off by"):
        bench_cpu._conv_runs(1, 8, [1, 2, 3, 4], "forward")

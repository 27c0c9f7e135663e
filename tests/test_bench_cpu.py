"""The CPU benchmark: its rows, its check of every result, its arithmetic."""

import importlib.util
import json

import numpy as np
import pytest

from weakunet.bench import __main__ as bench
from weakunet.bench import convolution, counts, runs
from weakunet.model import WeakUNet

HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_rows_have_what_the_json_promises(tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--only", "conv3d 16->32 forward", "--threads", "1", "--rounds", "1"]
    bench.main(["--cpu", *arguments, "--json", str(path)])
    row = json.loads(path.read_text())[0]
    assert row["name"] == "conv3d 16->32 forward" and row["size"] == "4x4x8x8"
    assert row["device"] == "cpu" and row["threads"] == 1 and row["ours_s"] > 0
    assert (row["ratio"] is not None) == (row["torch_s"] is not None) == HAS_TORCH
    flop = 2 * 27 * 16 * 32 * 4 * 4 * 8 * 8
    assert row["gflops"] == pytest.approx(flop / row["ours_s"] / 1e9)
    assert "conv3d 16->32 forward" in capsys.readouterr().out


@pytest.mark.slow
def test_step_and_prediction_are_timed_and_the_step_is_weighed(monkeypatch, capsys):
    tiny = counts.Step("tiny", counts.NETWORK | {"channels": (2, 3)}, (2, 1, 4, 4, 4))
    monkeypatch.setattr(counts, "STEPS", [tiny, tiny])
    bench.main(["--cpu", "--only", ":tiny", "--threads", "1", "--rounds", "1"])
    printed = capsys.readouterr().out
    step, predict = printed.splitlines()[-2:]
    assert step.startswith("| step:tiny ") and predict.startswith("| predict:tiny ")
    assert "left out" not in printed and "-" not in step.split("|")[8]
    assert ("-" in step) == (not HAS_TORCH) and "-" in predict


def test_ratio_is_the_median_over_rounds_against_the_faster_way():
    times = {"ours fp32": [1.0, 2.0, 9.0], "torch fp32 default": [9.0, 9.0, 9.0]}
    row = runs.compared(times | {"torch fp32 channels_last": [2.0, 1.0, 3.0]})
    assert row["torch_s"] == 2.0 and row["torch_by"] == "torch fp32 channels_last"
    assert row["ratio"] == 2.0  # of 1/2, 2/1 and 9/3
    assert row["ratio_tf32"] is None and row["ours_bf16_s"] is None


def test_sides_run_in_turn_and_the_first_rounds_are_not_counted():
    said = []
    sides = {"a": lambda: said.append("a"), "b": lambda: said.append("b")}
    times = runs.in_turn(sides, 2, lambda run: run() or len(said), warm_up=1)
    assert "".join(said) == "ababab" and times == {"a": [3, 5], "b": [4, 6]}


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_wrong_convolution_is_refused_before_it_is_timed(wrong, monkeypatch):
    forward = convolution.cpu.forward
    monkeypatch.setattr(convolution.cpu, "forward", lambda *a: forward(*a) * wrong)
    with pytest.raises(AssertionError, match="conv3d 1->8 forward, ours fp32: off by"):
        runs.sides_of(
            counts.Layer("conv3d", 1, 8, (1, 2, 3, 4)), "forward", "cpu", ("fp32",), "cpu"
        )


@pytest.mark.parametrize("name", ["encoder0.conv0.w", "decoder0.conv0.b", "linear.w"])
def test_a_step_with_a_wrong_gradient_is_refused(name, monkeypatch):
    step, backward = counts.STEPS[0]._replace(shape=(1, 1, 4, 8, 8)), WeakUNet.backward

    def wrong(self, dcount):
        backward(self, dcount)
        self.grads[name][...] *= 1.1 if self.params[name].dtype == "f4" else 1

    monkeypatch.setattr(WeakUNet, "backward", wrong)
    with pytest.raises(AssertionError, match="step:default, ours fp32: off by"):
        runs.sides_of(step, "step", "cpu", ("fp32",), "cpu")

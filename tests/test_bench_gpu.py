"""The GPU bench without a GPU: its counts, and its runs with the kernels on the CPU."""

import contextlib
import datetime
import json
import sys
import time

import numpy as np
import pytest

from weakunet import model
from weakunet.bench import __main__ as bench
from weakunet.bench import check as bench_check
from weakunet.bench import convolution, counts, gpu, runs
from weakunet.gpu import backend
from weakunet.model import WeakUNet
from weakunet.training.settings import Settings
from weakunet.util.cli import InputError

TINY = {"channels": (2, 3), "convs_per_level": 1, "block": 4}
H200 = counts.DEVICES["h200"]


@pytest.mark.parametrize("network", [counts.NETWORK, counts.PAPER, TINY])
def test_counted_layers_are_the_networks(network):
    weights = WeakUNet(**network, rng=np.random.default_rng(0)).params
    expected = [w.shape[:2] for name, w in weights.items() if name.endswith(".w") and w.ndim == 5]
    layers = counts.layers_of(network, (2, 1, 16, 24, 32))
    found = [(a.c_out, a.c_in + a.c_coarse) for a in layers if a.is_convolution]
    assert sorted(found) == sorted(expected)
    pools = [layer.volume for layer in layers if layer.kind == "maxpool3d"]
    assert pools == [(2, 16 >> i, 24 >> i, 32 >> i) for i in range(len(network["channels"]) - 1)]


def test_default_step_is_of_the_network_and_the_batch_that_train_takes():
    name, network, shape = counts.STEPS[0]
    assert name == "default" and shape[0] == Settings().batch
    assert network == {key: getattr(Settings(), key) for key in network}
    assert runs.model_of(counts.STEPS[0]).global_pool.k == Settings().block


def test_paper_network_costs_604_gflop_forward_and_three_times_that_less_one_layer_in_a_step():
    rows = {row["name"]: row for row in counts.counted("h200")}
    voxels = 84 * 128 * 168
    products = 1 * 32 + 32 * 32 * 2 + 32 * 32  # per voxel and tap, on each level
    products += (32 * 64 + 64 * 64 * 2 + 64 * 64) / 8 + (64 * 128 + 128 * 128) / 64
    upsampled = 64 * 32 + 128 * 64 / 8  # with 8 taps instead of 27
    convolutions = 2 * (27 * products + 8 * upsampled) * voxels
    assert rows["predict:paper"]["flop"] == pytest.approx(convolutions, rel=2e-3)
    assert convolutions == pytest.approx(604e9, rel=1e-3)
    step = 3 * convolutions - 2 * 27 * 32 * voxels
    assert rows["step:paper"]["flop"] == pytest.approx(step, rel=2e-3)


def test_floor_is_the_larger_of_arithmetic_and_memory():
    rows = {row["name"]: row for row, _ in counts.rows(counts.Device(1e12, 8e12, 1e9), "")}
    relu = rows["relu 32 forward"]
    assert relu["floor_s"] == relu["floor_tf32_s"] == relu["bytes"] / 1e9
    assert relu["bytes"] == 2 * 4 * 32 * 84 * 128 * 168 and relu["bound"] == "memory"
    rows = {row["name"]: row for row, _ in counts.rows(counts.Device(1e9, 8e9, 1e12), "")}
    conv = rows["conv3d 32->32 forward"]
    assert conv["bound"] == "arithmetic" and conv["floor_s"] == 8 * conv["floor_tf32_s"]


class FakeCupy:
    """Of CuPy what the bench asks beside arrays and kernels."""

    def __init__(self):
        self.cuda, self.said = self, []
        self.using_allocator = lambda malloc: contextlib.nullcontext()
        self.MemoryPool = self.get_default_memory_pool = self.Event = lambda: FakeEvent(self.said)
        self.get_elapsed_time = lambda start, stop: 2.0  # ms
        self.empty = lambda shape, dtype: "xy"
        self.copyto = lambda x, y: self.said.append("copy")


class FakeEvent:
    """An event and a memory pool in one."""

    malloc = None

    def __init__(self, said):
        self.said = said

    def total_bytes(self):
        return 3 * 2**20

    def __getattr__(self, name):
        return lambda: self.said.append(name)


@pytest.fixture
def stand_in(cuda_on_cpu, monkeypatch, request):
    """A GPU whose kernels run on the CPU, and PyTorch, where it is installed, on the CPU too."""

    def seconds(run, hold=False):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def stay(array, device):
        return np.asarray(array)

    cuda_on_cpu.cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cuda_on_cpu.cupy)
    monkeypatch.setattr(backend, "to_device", stay)
    monkeypatch.setattr(model, "to_device", stay)
    monkeypatch.setattr(model, "to_host", np.asarray)
    monkeypatch.setattr(backend, "as_graph", lambda step: step)  # tests/test_step.py has these
    monkeypatch.setattr(backend, "pick_device", lambda name="auto": "cuda")
    monkeypatch.setattr(backend, "device_name", lambda device: "stand-in for an H200")
    monkeypatch.setattr(gpu, "print_installation", lambda: None)
    monkeypatch.setattr(bench_check, "print_installation", lambda: None)
    monkeypatch.setattr(gpu, "device_seconds", seconds)
    monkeypatch.setattr(counts, "STEPS", [counts.Step("tiny", TINY, (1, 1, 2, 4, 6))])
    if runs.pytorch:
        torch = runs.pytorch.torch
        monkeypatch.setattr(gpu, "TORCH_DEVICE", "cpu")
        monkeypatch.setattr(runs.pytorch, "COMPILE", {"backend": "eager"})
        monkeypatch.setattr(runs.pytorch, "peak_mb", lambda run: 1.0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # its threads would wait for each other on a busy machine
        request.addfinalizer(lambda: torch.set_num_threads(threads))
    return cuda_on_cpu


device_seconds = gpu.device_seconds


def test_every_row_is_checked_and_timed(stand_in, tmp_path, capsys):
    bench.main(["--rounds", "1", "--json", str(tmp_path / "rows.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    whole = {"step:tiny", "predict:tiny"}
    assert whole < set(rows) and not any("relu" in name for name in rows)
    assert {"conv3d 2->3 backward", "upsample_conv3d 2+3->2 forward"} < set(rows)
    for name, row in rows.items():
        assert row["device"] == "stand-in for an H200" and row["ours_s"] > row["floor_s"] > 0
        assert row["share"] == pytest.approx(row["floor_s"] / row["ours_s"])
        assert row["ours_tf32_s"] > 0 and row["ours_bf16_s"] > 0
        assert (row["naive_s"] is None) == (name in whole)
        for end in ("", "_tf32", "_bf16") if runs.pytorch else ():
            assert row[f"ratio{end}"] == pytest.approx(row[f"ours{end}_s"] / row[f"torch{end}_s"])
            assert row[f"torch{end}_by"].startswith(f"torch {end[1:] or 'fp32'} ")
        if name in whole:
            assert row["ours_mb"] == row["ours_tf32_mb"] == 3
    printed = capsys.readouterr().out
    assert "left out" not in printed
    assert "| step:tiny " in printed and f"{datetime.date.today()}\n" in printed


@pytest.mark.parametrize("hold", [False, True])
def test_only_a_convolution_is_timed_while_the_gpu_is_busy_beforehand(hold, stand_in):
    said = stand_in.cupy.said
    assert device_seconds(lambda: said.append("run"), hold=hold) == 0.002
    assert said == ["copy"] * 4 * hold + ["record", "run", "record", "synchronize"]


def test_what_fails_or_is_wrong_of_pytorchs_is_named_and_left_out(capsys):
    exact, tolerances = (None, np.array([1.0, 2.0])), {"fp32": [1e-3], "tf32": [1e-3]}

    def fails():
        raise RuntimeError("no Triton\nhere")

    sides = {"ours fp32": lambda: (exact[1], None), "torch tf32 default": lambda: exact[1] * 1.01}
    sides["torch tf32 channels_last"] = lambda: exact[1] * 1.0001
    sides["torch tf32 default compiled"] = fails
    good = runs.checked("step:x", sides, exact, tolerances)
    assert list(good) == ["ours fp32", "torch tf32 channels_last"]
    wrong, failed = capsys.readouterr().out.splitlines()
    assert "step:x: torch tf32 default is left out: off by 1.0e-02" in wrong
    assert "compiled is left out: no Triton here" in failed
    with pytest.raises(AssertionError, match="step:x, ours fp32: off by nan"):
        runs.checked("step:x", {"ours fp32": lambda: exact[1] * np.nan}, exact, tolerances)


@pytest.mark.parametrize("mode", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("factor", "fits"), [(0.5, True), (3, False), (np.nan, False)])
def test_a_convolution_may_be_off_by_its_precision_and_no_more(
    mode, factor, fits, stand_in, monkeypatch
):
    off = np.float32(1 + factor * {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1.6e-2}[mode])
    rung, convolve = convolution.gpu.KERNEL_OF[mode], convolution.gpu.conv3d_forward_cuda

    def wrong(x, w, b, kernel):
        return convolve(x, w, b, kernel) * (off if kernel == rung else 1)

    monkeypatch.setattr(convolution.gpu, "conv3d_forward_cuda", wrong)
    if fits:
        (row,) = gpu.measure(1, "conv3d 2->3 forward")
        assert row["ours_s"] > 0
        return
    with pytest.raises(AssertionError, match=f"conv3d 2->3 forward, ours {mode}: off by"):
        gpu.measure(1, "conv3d 2->3 forward")


def test_check_passes_where_the_kernels_are_right(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(bench_check, "results", on_numpy_for_cpu(bench_check.results, stand_in))
    rows = bench_check.check()
    assert len(rows) == 6 and all(row["repeats"] for row in rows)
    assert max(row["error"] for row in rows if row["dtype"] == "float64") < 1e-11
    assert "agrees with numpy" in capsys.readouterr().out
    launched = {kernel for _, kernel in stand_in.launched}
    assert {"conv3d_backward_weight_naive", "conv3d_tensor_backward_weight"} <= launched
    assert {"folded_tensor_forward", "folded_tensor_unfold"} <= launched


def test_check_fails_where_a_kernel_is_wrong(stand_in, monkeypatch):
    right = on_numpy_for_cpu(bench_check.results, stand_in)

    def wrong(pooling, dtype, device):
        found = right(pooling, dtype, device)
        return found | {"warp": found["warp"] * (1 + 1e-9 * (device == "cuda"))}

    monkeypatch.setattr(bench_check, "results", wrong)
    with pytest.raises(InputError, match="does not agree with numpy"):
        bench_check.check()


def on_numpy_for_cpu(results, gpu):
    """bench_check.results() that runs numpy, not the kernels, for the device 'cpu', and the kernels
    with their threads in another order every time.
    """

    def run(pooling, dtype, device):
        gpu.seed += 1
        with pytest.MonkeyPatch.context() as patch:
            if device == "cpu":
                patch.setattr(backend, "is_cuda", lambda array: False)
            return results(pooling, dtype, device)

    return run


def test_check_without_a_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(backend, "pick_device", lambda name="auto": "cpu")
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--check"])
    assert stopped.value.code == 2
    assert "no usable GPU" in capsys.readouterr().err


def test_bench_without_a_gpu_prints_counts_and_floors(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(backend, "pick_device", lambda name="auto": "cpu")
    bench.main(["--floor", "a100", "--only", "paper", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    keys = {"name", "size", "device", "threads", "ours_s", "torch_s", "ratio"}
    assert rows and all(keys <= set(row) and row["ours_s"] is None for row in rows)
    assert "step:paper" in capsys.readouterr().out


def test_installation_is_printed_where_cupy_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    bench_check.print_installation()
    assert "CuPy: not there" in capsys.readouterr().out

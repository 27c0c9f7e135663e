"""The GPU bench without a GPU: its counts, and its runs with the kernels on the CPU."""

import contextlib
import datetime
import functools
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from weakunet import model
from weakunet.bench import __main__ as bench
from weakunet.bench import check as bench_check
from weakunet.bench import counts as bench_counts
from weakunet.bench import gpu as bench_gpu
from weakunet.bench import gpu_steps as bench_gpu_steps
from weakunet.bench import predictions as bench_predict
from weakunet.gpu import backend
from weakunet.model import WeakUNet
from weakunet.util.cli import InputError

TINY = {"channels": (2, 3), "convs_per_level": 1}


@pytest.mark.parametrize("network", [bench_counts.SMALL, bench_counts.PAPER, TINY])
def test_counted_layers_are_the_networks(network):
    weights = WeakUNet(**network, rng=np.random.default_rng(0)).params
    expected = [w.shape[:2] for name, w in weights.items() if name.endswith(".w") and w.ndim == 5]
    layers = bench_counts.layers_of(network, (2, 1, 16, 24, 32))
    convolutions = [layer for layer in layers if layer.kind in ("conv3d", "upconv3d")]
    found = [(layer.c_out, layer.c_in + layer.c_coarse) for layer in convolutions]
    assert sorted(found) == sorted(expected)
    pools = [layer.volume for layer in layers if layer.kind == "maxpool3d"]
    assert pools == [(2, 16 >> i, 24 >> i, 32 >> i) for i in range(len(network["channels"]) - 1)]


def test_paper_network_costs_604_gflop_forward_and_three_times_that_less_one_layer_in_a_step():
    rows = {row["name"]: row for row in bench_counts.counted("h200")}
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
    rows = {row["name"]: row for row in bench_counts.count_rows("paper", (1e12, 1e9))}
    relu = rows["relu 32 forward"]
    assert relu["floor_s"] == relu["bytes"] / 1e9 == 2 * 4 * 32 * 84 * 128 * 168 / 1e9
    assert relu["bound"] == "memory"
    rows = {row["name"]: row for row in bench_counts.count_rows("paper", (1e9, 1e12))}
    assert rows["conv3d 32->32 forward"]["bound"] == "arithmetic"


@pytest.mark.parametrize(
    ("c_in", "c_out", "volume"), [(32, 32, (1, 8, 16, 32)), (64, 96, (2, 4, 8, 16))]
)
def test_counted_mma_are_those_of_the_convolution(c_in, c_out, volume):
    flop = bench_counts.cost(bench_counts.Layer("conv3d", c_in, c_out, volume), "forward")[0]
    tiles = {name: volume[0] * bench_predict._tiles(volume, name) for name in ("TILE", "DW")}
    forward = tiles["TILE"] * (c_out // 32) * (c_in // 8) * bench_predict.FORWARD.mma
    weight = tiles["DW"] * (c_out // 32) * (c_in // 16) * bench_predict.WEIGHT.mma
    assert forward * 2 * 16 * 8 * 8 == weight * 2 * 16 * 8 * 8 == flop


@pytest.mark.parametrize(
    ("c_coarse", "c_out", "volume"), [(64, 32, (1, 4, 16, 32)), (128, 96, (2, 8, 16, 64))]
)
def test_counted_mma_of_the_upsampled_part_are_8_taps_an_output(c_coarse, c_out, volume):
    layer = bench_counts.Layer("upconv3d", 0, c_out, volume, c_coarse)
    mma = bench_counts.cost(layer, "forward")[0] / (2 * 16 * 8 * 8)
    assert mma == 8 * c_coarse * c_out * np.prod(volume) / (16 * 8 * 8)
    half = bench_predict._half(volume)
    up, dw = (volume[0] * bench_predict._tiles(half, name) for name in ("UP", "UP_DW"))
    assert up * 2 * (c_out // 16) * (c_coarse // 8) * bench_predict.UP_FORWARD.mma == mma
    assert up * 4 * (c_coarse // 64) * (c_out // 8) * bench_predict.UP_BACK.mma == mma
    assert dw * 4 * (c_coarse // 32) * (c_out // 32) * bench_predict.UP_WEIGHT.mma == mma


@pytest.mark.parametrize("c_coarse", [0, 64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bfloat16_is_predicted_faster_but_arrays_stay_float32(direction, c_coarse):
    kind = "upconv3d" if c_coarse else "conv3d"
    layer = bench_counts.Layer(kind, 32, 32, (1, 84, 128, 168), c_coarse)
    tf32 = bench_predict.tf32_seconds(layer, direction, "h200")
    assert 0.5 < bench_predict.bf16_seconds(layer, direction, "h200") / tf32 < 0.9
    assert {piece.mma / more.mma for piece, more in bench_predict.BF16.items()} == {1}
    rows = {row["name"]: row for row in bench_counts.counted("h200")}
    step = rows["step:paper"]
    assert 0.5 < step["predicted_bf16_s"] / step["predicted_s"] < 0.9


def test_predicted_time_is_no_shorter_than_the_mma_take_and_absent_without_tensor_cores():
    layer = bench_counts.Layer("conv3d", 32, 32, (1, 84, 128, 168))
    flop, _ = bench_counts.cost(layer, "forward")
    h200 = bench_predict.GPUS["h200"]
    peak = h200.sms * h200.clock * 4 / h200.mma_cycles * 2048
    assert 1 < bench_predict.tf32_seconds(layer, "forward", "h200") / (flop / peak) < 2
    assert bench_predict.tf32_seconds(layer, "forward", "titan-x") is None
    first = layer._replace(c_in=1)
    assert bench_predict.tf32_seconds(first, "forward", "h200") is None
    folded = layer._replace(kind="upconv3d", c_coarse=64)
    flop, _ = bench_counts.cost(folded, "forward")
    assert 1 < bench_predict.tf32_seconds(folded, "forward", "h200") / (flop / peak) < 2
    few = folded._replace(c_coarse=4)
    assert bench_predict.tf32_seconds(few, "forward", "h200") is None
    rows = {row["name"]: row for row in bench_counts.counted("titan-x")}
    assert rows["step:paper"]["predicted_s"] is None


class FakeCupy:
    """Of CuPy what the bench asks beside arrays and kernels; what is 'captured' is computed."""

    def __init__(self):
        self.cuda, self.said = self, []
        self.using_allocator = lambda malloc: contextlib.nullcontext()
        self.MemoryPool = self.get_default_memory_pool = self.get_current_stream = self.Stream
        self.Event = self.Stream
        self.get_elapsed_time = lambda start, stop: 2.0  # ms

    def Stream(self, **options):
        return FakeStream(self.said)


class FakeStream:
    """A stream, an event and a memory pool in one."""

    def __init__(self, said):
        self.said, self.malloc = said, None
        self.used_bytes = lambda: 2**20
        self.total_bytes = lambda: 3 * 2**20

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __getattr__(self, name):
        return lambda: self.said.append(name)

    def end_capture(self):
        self.said.append("end_capture")
        return SimpleNamespace(launch=lambda: self.said.append("launch"))


@pytest.fixture
def stand_in(cuda_on_cpu, monkeypatch, request):
    """A GPU whose kernels run on the CPU, and PyTorch, where it is installed, on the CPU too."""

    def seconds(run, rounds, hold=False):
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
    monkeypatch.setattr(backend, "pick_device", lambda name="auto": "cuda")
    monkeypatch.setattr(backend, "device_name", lambda device: "stand-in")
    monkeypatch.setattr(bench_check, "print_installation", lambda: None)
    monkeypatch.setattr(bench_gpu, "device_seconds", seconds)
    monkeypatch.setattr(bench_gpu, "device_limits", lambda: bench_gpu_limits(2**12, 8))
    for name in ("_grown_mb", "train_seconds"):
        few = functools.partial(getattr(bench_gpu_steps, name), steps=2)
        monkeypatch.setattr(bench_gpu_steps, name, few)
    for module in (bench_gpu, bench_gpu_steps, bench_counts):
        monkeypatch.setattr(module, "SIZES", {"tiny": (TINY, (1, 1, 2, 4, 6))})
    if bench_gpu.bench_torch_gpu:
        torch = bench_gpu.bench_torch_gpu.torch
        monkeypatch.setattr(bench_gpu.bench_torch_gpu, "DEVICE", "cpu")
        monkeypatch.setattr(bench_gpu.bench_torch_gpu, "COMPILE", {"backend": "eager"})
        monkeypatch.setattr(bench_gpu.bench_torch_gpu, "peak_mb", lambda run: run() and 1.0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # its threads would wait for each other on a busy machine
        request.addfinalizer(lambda: torch.set_num_threads(threads))
    return cuda_on_cpu


bench_gpu_limits, device_seconds = bench_gpu.device_limits, bench_gpu.device_seconds


def test_every_row_is_checked_and_timed(stand_in, tmp_path, capsys):
    bench.main(["--rounds", "1", "--json", str(tmp_path / "rows.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {"step:tiny", "predict:tiny", "conv3d 2->3 backward", "localmax 2 forward"} <= set(rows)
    assert {"upconv3d 2+3->2 forward", "upconv3d 2+3->2 backward"} <= set(rows)
    for row in rows.values():
        assert row["device"] == "stand-in" and row["ours_s"] > 0 and row["floor_s"] > 0
        assert (row["naive_s"] is not None) == row["name"].startswith(("conv3d", "upconv3d"))
        in_tf32 = row["name"].startswith(("conv3d", "upconv3d", "step", "predict"))
        assert (row["ours_tf32_s"] is not None) == (row["ours_bf16_s"] is not None) == in_tf32
        if bench_gpu.bench_torch_gpu:
            assert row["ratio"] == pytest.approx(row["ours_s"] / row["torch_s"])
            assert row["torch_tf32_s"] > 0 and row["torch_bf16_s"] > 0
            times = (row[f"ours{mode}_s"] for mode in ("", "_tf32", "_bf16"))
            ours = min(seconds for seconds in times if seconds)
            assert row["ratio_bf16"] == pytest.approx(ours / row["torch_bf16_s"])
            assert row["torch_bf16_by"].startswith("bf16 ")
            if in_tf32:
                tf32 = row["ours_tf32_s"] / row["torch_tf32_s"]
                assert row["ratio_tf32"] == pytest.approx(tf32)
        if row["name"].startswith(("step", "predict")):
            assert row["ours_mb"] == row["ours_tf32_mb"] == 2
    assert rows["step:tiny"]["grown_mb"] == 0 and rows["step:tiny"]["train_s"] > 0
    printed = capsys.readouterr().out
    assert "| step:tiny " in printed and f"{datetime.date.today()}\n" in printed


def test_a_graph_is_checked_for_the_same_bits_and_timed(stand_in, monkeypatch):
    said = stand_in.cupy.said
    step, predict = bench_gpu.measure(1, ":tiny", graph=True)
    assert step["ours_graph_s"] > 0 and predict["ours_graph_s"] > 0
    captured = ["synchronize", "synchronize", "begin_capture", "end_capture", "launch"]
    assert [what for what in said if what != "free_all_blocks"] == 2 * [*captured, "launch"]
    right = backend.captured
    monkeypatch.setattr(backend, "captured", lambda run: run() and right(run))  # one step further
    with pytest.raises(AssertionError, match="other bits"):
        bench_gpu.measure(1, "step:tiny", graph=True)


@pytest.mark.parametrize("hold", [False, True])
def test_only_a_layer_is_timed_while_the_gpu_is_busy_beforehand(hold, stand_in, monkeypatch):
    said = stand_in.cupy.said
    monkeypatch.setattr(bench_gpu, "_multiply_add", lambda *args: said.append("busy"))
    assert device_seconds(lambda: said.append("run"), rounds=2, hold=hold) == 0.002
    round_ = ["busy"] * hold + ["record", "run", "record", "synchronize"]
    assert said == ["run"] * 3 + 2 * round_


def test_a_wrong_kernel_is_not_timed(stand_in, monkeypatch):
    relu = bench_gpu.FORWARD["relu"]
    wrong = {**bench_gpu.FORWARD, "relu": lambda a: relu(a) * (1.001 if a.x.dtype == "f" else 1)}
    monkeypatch.setattr(bench_gpu, "FORWARD", wrong)
    with pytest.raises(AssertionError, match="relu 2 forward, ours: off by 1.0e-03"):
        bench_gpu.measure(1, "relu 2 forward")


def test_what_fails_or_is_wrong_of_pytorchs_is_named_and_left_out(capsys):
    exact, tolerance = (None, np.array([1.0, 2.0])), {"ours": 1e-3, "tf32": 1e-3}

    def fails():
        raise RuntimeError("no Triton\nhere")

    runs = {"ours": lambda: (exact[1], None), "tf32 default": lambda: exact[1] * 1.01}
    runs |= {"tf32 channels_last": lambda: exact[1] * 1.0001, "tf32 channels_last compiled": fails}
    good = bench_gpu_steps.checked("step:x", runs, runs, exact, tolerance)
    assert list(good) == ["ours", "tf32 channels_last"]
    wrong, failed = capsys.readouterr().out.splitlines()
    assert "step:x, PyTorch, tf32 default, is left out: off by 1.0e-02" in wrong
    assert "compiled, is left out: no Triton here" in failed
    runs = {"ours": lambda: exact[1] * np.nan}
    with pytest.raises(AssertionError, match="step:x, ours: off by nan"):
        bench_gpu_steps.checked("step:x", runs, runs, exact, tolerance)


@pytest.mark.parametrize("side", ["ours_tf32", "ours_bf16"])
@pytest.mark.parametrize(("factor", "fits"), [(1, True), (3, False), (np.nan, False)])
def test_a_convolution_on_tensor_cores_may_be_off_by_so_much(
    side, factor, fits, stand_in, monkeypatch
):
    off = np.float32(1 + factor * {"ours_tf32": 1e-3, "ours_bf16": 8e-3}[side])
    rung = bench_gpu.OURS[side]
    tensor = bench_gpu.FORWARD[rung]
    wrong = {**bench_gpu.FORWARD, rung: lambda a: tensor(a) * off}
    monkeypatch.setattr(bench_gpu, "FORWARD", wrong)
    if fits:
        (row,) = bench_gpu.measure(1, "conv3d 2->3 forward")
        assert row[f"{side}_s"] > 0
        return
    with pytest.raises(AssertionError, match=f"conv3d 2->3 forward, {side}: off by"):
        bench_gpu.measure(1, "conv3d 2->3 forward")


def test_check_passes_where_the_kernels_are_right(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(bench_check, "results", on_numpy_for_cpu(bench_check.results, stand_in))
    rows = bench_check.check()
    assert len(rows) == 6 and all(row["repeats"] for row in rows)
    assert max(row["error"] for row in rows if row["dtype"] == "float64") < 1e-11
    assert "agrees with numpy" in capsys.readouterr().out
    files = [file for file, _ in stand_in.launched]
    assert files.count("layers/conv/tensor_bf16") == 8
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

"""--precision: what it changes, and how a CPU imitates it."""

import json
import shutil

import numpy as np
import pytest

import weakunet.layers.conv.precision
import weakunet.model
from weakunet import predict, train
from weakunet.data import load
from weakunet.data.volumes import Volume, read_volume, write_volume
from weakunet.gpu import backend
from weakunet.layers.conv import tensor as conv3d_tensor
from weakunet.layers.conv.precision import PRECISIONS, pick_precision
from weakunet.layers.conv.rounding import to_bf16, to_tf32
from weakunet.layers.loss import mse_backward
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import InputError

IMITATED = "note: a CPU imitates {}: it rounds as a GPU does, and is slower"


def model():
    return WeakUNet((8, 16), rng=np.random.default_rng(0))


def test_factors_are_rounded_to_the_nearest_number_that_there_is():
    e = 2.0**-10  # TF32's next number after 1 is 1 + e; halves go away from zero
    given = np.array([1 + e / 4, 1 + e / 2, -1 - e / 2, 1 + e, 3 - e, 0], np.float32)
    expected = np.array([1, 1 + e, -1 - e, 1 + e, 3, 0], np.float32)
    np.testing.assert_array_equal(to_tf32(given), expected)
    e = 2.0**-7  # bfloat16: halves go to the even neighbour
    given = np.array([1 + e / 4, 1 + e / 2, 1 + 3 * e / 2, -1 - 3 * e / 4, 0.1], np.float32)
    expected = np.array([1, 1, 1 + 2 * e, -1 - e, 205 / 2048], np.float32)
    np.testing.assert_array_equal(to_bf16(given), expected)


def test_a_cpu_says_that_it_imitates(tmp_path, capsys):
    checkpoint, scan = tmp_path / "best.npz", tmp_path / "scan.nii.gz"
    save_checkpoint(checkpoint, model())
    volume = Volume(np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4))
    write_volume(scan, volume.array, volume)
    results = {}
    second = shutil.copy(scan, tmp_path / "second.nii.gz")  # two: in processes of their own
    for precision in PRECISIONS:
        out = tmp_path / precision
        words = [scan, second, "--model", checkpoint, "--device", "cpu", "--precision", precision]
        predict.main([str(word) for word in [*words, "--out", out, "--jobs", 2]])
        imitated = precision in ("tf32", "bf16")
        assert (IMITATED.format(precision) in capsys.readouterr().out) == imitated
        results[precision] = read_volume(out / "scan_heatmap.nii.gz").array
    np.testing.assert_array_equal(results.pop("auto"), results["fp32"])
    apart = {name: np.abs(results[name] - results["fp32"]).max() for name in results}
    assert 0 < apart["tf32"] < apart["bf16"] < 0.05 * np.abs(results["fp32"]).max()


def test_nobody_has_to_choose(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load, "PHANTOM_SCANS", {"train": 2, "val": 2, "test": 1})
    train.main(["--device", "cpu", "--epochs", "1", "--out", str(tmp_path / "run")])
    assert "device: cpu, fp32; run" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["precision"] == "auto"
    words = ["scan.nii.gz", "--model", "best.npz", "--out", "out"]
    assert predict.parse_arguments(words).precision == "auto"


def test_a_resumed_run_keeps_its_precision(tmp_path, capsys, monkeypatch):
    taken = []

    class Stop(Exception):
        pass

    def load_scans(settings, splits):
        taken.append(settings.precision)
        raise Stop

    monkeypatch.setattr(train, "load_scans", load_scans)
    monkeypatch.setattr(backend, "pick_device", lambda name: "cuda")
    monkeypatch.setattr(backend, "device_name", lambda device: device)
    monkeypatch.setattr(backend, "compute_capability", lambda: 90)
    monkeypatch.setattr(weakunet.layers.conv.precision, "computes_right", lambda precision: True)
    settings = {"seed": 3, "precision": "tf32"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    monkeypatch.setattr(backend, "pick_device", lambda name: "cpu")
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    assert IMITATED.format("tf32") in capsys.readouterr().out
    del settings["precision"]  # of a run that an older program began
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    assert taken == ["tf32", "tf32", "fp32"]


@pytest.fixture
def gpu(cuda_on_cpu, monkeypatch):
    """A GPU whose kernels run on the CPU: networks move there, too."""
    monkeypatch.setattr(weakunet.model, "to_device", lambda array, device: np.asarray(array))
    return cuda_on_cpu


def test_a_gpu_takes_tf32_by_itself_if_it_has_tensor_cores_that_compute_right(
    gpu, capsys, monkeypatch
):
    monkeypatch.setattr(backend, "to_device", lambda array, device: array)
    assert pick_precision("auto", "cuda") == "tf32" and pick_precision("bf16", "cuda") == "bf16"
    assert capsys.readouterr().out == ""
    assert pick_precision("auto", "cpu") == pick_precision("fp32", "cuda") == "fp32"
    arranged = conv3d_tensor._arranged
    half = 2.0**-8  # of a backward pass' weights, as a wrong place of some of them would be
    monkeypatch.setattr(
        conv3d_tensor,
        "_arranged",
        lambda *args, **how: arranged(*args, **how) * (1 + half * len(how)),
    )
    assert pick_precision("auto", "cuda") == "fp32"
    assert "comes out wrong on this GPU" in capsys.readouterr().out
    with pytest.raises(InputError, match="tf32 comes out wrong.*use --precision fp32"):
        pick_precision("tf32", "cuda")
    monkeypatch.setattr(backend, "compute_capability", lambda: 75)
    assert pick_precision("auto", "cuda") == pick_precision("tf32", "cuda") == "fp32"
    assert capsys.readouterr().out.count("no tensor cores for tf32, so it computes in fp32") == 2


def step(network, gpu):
    """name -> what one forward and backward pass gives, and the kernels that it launched."""
    rng = np.random.default_rng(1)
    scans, counts = rng.random((1, 1, 4, 6, 10), np.float32), np.array([3], np.float32)
    gpu.launched.clear()
    predicted = network.forward(scans)
    network.backward(mse_backward(predicted, counts))
    return {"count": predicted} | network.grads, {kernel for _, kernel in gpu.launched}


# precision -> the most that a step's numbers move by: 2^-11 and 2^-8 a factor, through all layers
MOVES = {"tf32": 2e-3, "bf16": 1.6e-2}


@pytest.mark.parametrize("precision", MOVES)
def test_step_runs_on_tensor_cores_and_moves_counts_and_gradients_a_little(precision, gpu):
    tensor = {"conv3d_tensor_weights", "conv3d_tensor", "conv3d_tensor_backward_weight"}
    tensor |= {f"up{kernel}" for kernel in tensor - {"conv3d_tensor"}}
    tensor |= {"upconv3d_tensor_forward", "upconv3d_tensor_backward_coarse"}
    exact, kernels = step(model().to("cuda"), gpu)
    assert not tensor & kernels
    found, kernels = step(model().to("cuda", precision), gpu)
    assert tensor <= kernels
    assert not kernels & {"upsample3d_forward", "upsample3d_backward"}  # it is never stored
    files = {file for file, kernel in gpu.launched if kernel in tensor}
    assert (files == {conv3d_tensor.BF16}) == (precision == "bf16")
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() / np.abs(value).max() < MOVES[precision], name
    assert found["count"] != exact["count"]
    again, kernels = step(model().to("cuda", precision).to("cuda"), gpu)
    assert not tensor & kernels and again["count"] == exact["count"]


@pytest.mark.parametrize("precision", MOVES)
def test_a_cpus_imitation_gives_what_the_kernels_give(precision, gpu):
    found, kernels = step(model().to("cuda", precision), gpu)
    assert "conv3d_tensor" in kernels
    gpu.launched.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "is_cuda", lambda array: False)
        patch.setattr(weakunet.model, "is_cuda", lambda array: False)
        imitated, kernels = step(model().to("cpu", precision), gpu)
    assert not kernels
    exact, _ = step(model().to("cuda"), gpu)
    for name, value in found.items():
        # not the same bits: sums in another order may fall on the other side of a rounding
        off, effect = (np.abs(other[name] - value).max() for other in (imitated, exact))
        assert off < 0.01 * effect + 1e-6 * np.abs(value).max(), name
    assert imitated["count"] != exact["count"]


@pytest.mark.parametrize("precision", MOVES)
def test_relus_that_the_convolutions_compute_change_no_bit(precision, gpu):
    def network():
        rng = np.random.default_rng(0)
        return WeakUNet((8, 16), convs_per_level=2, rng=rng).to("cuda", precision)

    fused, kernels = step(network(), gpu)
    assert "relu_backward" in kernels  # of those at which a level begins
    apart = network()
    for stack in (*apart.encoder, *apart.decoder):
        for layer in stack:
            for flag in ("relu", "mask", "forward_done", "backward_done"):
                setattr(layer, flag, False)
    expected, _ = step(apart, gpu)
    for name, value in expected.items():
        np.testing.assert_array_equal(fused[name].view(np.uint32), value.view(np.uint32), name)
    assert np.abs(fused["encoder0.conv0.w"]).max() > 0

"""--precision: who takes it, where it is refused, and what it changes."""

import json

import numpy as np
import pytest

import weakunet.model
from weakunet import backend, predict, train
from weakunet.checkpoint import save_checkpoint
from weakunet.loss import mse_backward
from weakunet.model import WeakUNet

REFUSED = "error: --precision tf32 needs a GPU's tensor cores; on a CPU only fp32 runs"


def model():
    return WeakUNet((8, 16), rng=np.random.default_rng(0))


def fails(capsys, main, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_cpu_refuses_tf32_in_one_line_and_writes_nothing(tmp_path, capsys):
    out, checkpoint = tmp_path / "run", tmp_path / "best.npz"
    save_checkpoint(checkpoint, model())
    tf32 = "--device", "cpu", "--precision", "tf32", "--out", out
    assert fails(capsys, train.main, *tf32) == REFUSED
    scan = tmp_path / "scan.nii.gz"
    assert fails(capsys, predict.main, scan, "--model", checkpoint, *tf32) == REFUSED
    assert not out.exists()


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
    settings = {"seed": 3, "precision": "tf32"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    monkeypatch.setattr(backend, "pick_device", lambda name: "cpu")
    assert fails(capsys, train.main, "--out", tmp_path, "--resume") == REFUSED
    del settings["precision"]  # of a run that an older program began
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    assert taken == ["tf32", "fp32"]


def test_a_card_without_tensor_cores_says_that_it_computes_in_fp32(capsys, monkeypatch):
    for capability, said in ((75, "computes in fp32"), (80, "")):
        monkeypatch.setattr(backend, "compute_capability", lambda result=capability: result)
        backend.require_precision("tf32", "cuda")
        printed = capsys.readouterr().out
        assert said in printed and bool(said) == bool(printed)


@pytest.fixture
def gpu(cuda_on_cpu, monkeypatch):
    """A GPU whose kernels run on the CPU: networks move there, too."""
    monkeypatch.setattr(weakunet.model, "to_device", lambda array, device: np.asarray(array))
    return cuda_on_cpu


def step(network, gpu):
    """name -> what one forward and backward pass gives, and the kernels that it launched."""
    rng = np.random.default_rng(1)
    scans, counts = rng.random((1, 1, 4, 6, 10), np.float32), np.array([3], np.float32)
    gpu.launched.clear()
    predicted = network.forward(scans)
    network.backward(mse_backward(predicted, counts))
    return {"count": predicted} | network.grads, {kernel for _, kernel in gpu.launched}


def test_tf32_step_runs_on_tensor_cores_and_moves_counts_and_gradients_a_little(gpu):
    tensor = {"conv3d_tensor_weights", "conv3d_tensor", "conv3d_tensor_backward_weight"}
    tensor |= {f"up{kernel}" for kernel in tensor - {"conv3d_tensor"}}
    tensor |= {"upconv3d_tensor_forward", "upconv3d_tensor_backward_coarse"}
    exact, kernels = step(model().to("cuda"), gpu)
    assert not tensor & kernels
    found, kernels = step(model().to("cuda", "tf32"), gpu)
    assert tensor <= kernels
    assert not kernels & {"upsample3d_forward", "upsample3d_backward"}  # it is never stored
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() / np.abs(value).max() < 0.01, name
    assert found["count"] != exact["count"]
    again, kernels = step(model().to("cuda", "tf32").to("cuda"), gpu)
    assert not tensor & kernels and again["count"] == exact["count"]


def test_relus_that_the_convolutions_compute_change_no_bit(gpu):
    def network():
        rng = np.random.default_rng(0)
        return WeakUNet((8, 16), convs_per_level=2, rng=rng).to("cuda", "tf32")

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

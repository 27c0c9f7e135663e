"""--precision: who takes it, where it is refused, and what it changes."""

import json

import numpy as np
import pytest

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


def test_tf32_step_runs_on_tensor_cores_and_moves_counts_and_gradients_a_little(cuda_on_cpu):
    rng = np.random.default_rng(1)
    scans, counts = rng.random((1, 1, 4, 6, 10), np.float32), np.array([3], np.float32)
    found = {}
    for precision in backend.PRECISIONS:
        cuda_on_cpu.launched.clear()
        network = model().to("cpu", precision)  # whose kernels the fixture runs
        predicted = network.forward(scans)
        network.backward(mse_backward(predicted, counts))
        kernels = {kernel for _, kernel in cuda_on_cpu.launched}
        assert ("conv3d_tensor" in kernels) == (precision == "tf32")
        assert ("conv3d_tensor_backward_weight" in kernels) == (precision == "tf32")
        found[precision] = {"count": predicted} | network.grads
    for name, exact in found["fp32"].items():
        error = np.abs(found["tf32"][name] - exact).max() / np.abs(exact).max()
        assert error < 0.01, name
    assert found["tf32"]["count"] != found["fp32"]["count"]

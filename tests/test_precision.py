"""--precision: what it changes, and who can have which."""

import json

import numpy as np
import pytest

import weakunet.layers.conv.gpu
from weakunet import predict, train
from weakunet.data import load
from weakunet.data.volumes import Volume, write_volume
from weakunet.gpu import backend
from weakunet.layers.conv import tensor
from weakunet.layers.conv.gpu import pick_precision
from weakunet.layers.conv.packed import pack, unpack
from weakunet.layers.level import Level
from weakunet.layers.loss import mse_backward
from weakunet.layers.relu import ReLU
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import save_checkpoint
from weakunet.util.cli import InputError


def model():
    return WeakUNet((8, 16), rng=np.random.default_rng(0))


def test_tensor_cores_on_a_cpu_are_refused_in_one_line(tmp_path, capsys):
    checkpoint, scan = tmp_path / "best.npz", tmp_path / "scan.nii.gz"
    save_checkpoint(checkpoint, model())
    volume = Volume(np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4))
    write_volume(scan, volume.array, volume)
    out = tmp_path / "out"
    words = ["--device", "cpu", "--out", str(out), "--precision"]
    for precision in ("tf32", "bf16"):
        commands = (train, []), (predict, [str(scan), "--model", str(checkpoint)])
        for command, more in commands:
            with pytest.raises(SystemExit) as stopped:
                command.main([*more, *words, precision])
            assert stopped.value.code == 2
            error = capsys.readouterr().err
            assert f"--precision {precision} needs" in error and error.count("\n") == 1
            assert not out.exists()


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
    monkeypatch.setattr(weakunet.layers.conv.gpu, "computes_right", lambda precision: True)
    settings = {"seed": 3, "precision": "tf32"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    monkeypatch.setattr(backend, "pick_device", lambda name: "cpu")
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path), "--resume"])
    assert "--precision tf32 needs the tensor cores of a GPU" in capsys.readouterr().err
    del settings["precision"]  # of a run that an older program began
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(Stop):
        train.main(["--out", str(tmp_path), "--resume"])
    assert taken == ["tf32", "fp32"]


@pytest.fixture
def gpu(cuda_on_cpu, monkeypatch):
    """A GPU whose kernels run on the CPU: networks move there, too."""
    monkeypatch.setattr(backend, "to_device", lambda array, device: np.asarray(array))
    return cuda_on_cpu


def test_a_gpu_takes_tf32_by_itself_if_it_has_tensor_cores_that_compute_right(
    gpu, capsys, monkeypatch
):
    assert pick_precision("auto", "cuda") == "tf32" and pick_precision("bf16", "cuda") == "bf16"
    assert capsys.readouterr().out == ""
    assert pick_precision("auto", "cpu") == pick_precision("fp32", "cuda") == "fp32"
    right = tensor.backward_input
    wrong = 1 + 2.0**-8  # of a backward pass' weights, as a wrong place of some of them would be
    monkeypatch.setattr(tensor, "backward_input", lambda dy, w, mask: right(dy, w * wrong, mask))
    assert pick_precision("auto", "cuda") == "fp32"
    assert "gives wrong results on this GPU" in capsys.readouterr().out
    with pytest.raises(InputError, match="tf32 gives wrong.*use --precision fp32"):
        pick_precision("tf32", "cuda")
    monkeypatch.setattr(backend, "compute_capability", lambda: 75)
    assert pick_precision("auto", "cuda") == pick_precision("tf32", "cuda") == "fp32"
    assert capsys.readouterr().out.count("no tensor cores for tf32, so it computes in fp32") == 2


def step(network, gpu, outside=0):
    """name -> what one forward and backward pass gives, and the kernels that it launched."""
    rng = np.random.default_rng(1)
    scans, counts = rng.random((1, 1, 4, 6, 10), np.float32), np.array([3], np.float32)
    scans[..., :outside] = 0  # outside the ROI
    gpu.launched.clear()
    predicted = network.forward(scans)
    network.backward(mse_backward(predicted, counts))
    return {"count": predicted} | network.grads, {kernel for _, kernel in gpu.launched}


# precision -> the most that a step's numbers move by: 2^-11 and 2^-8 a factor, through all layers
MOVES = {"tf32": 2e-3, "bf16": 1.6e-2}


@pytest.mark.parametrize("precision", MOVES)
def test_step_runs_on_tensor_cores_and_moves_counts_and_gradients_a_little(precision, gpu):
    steps = "forward", "weights", "backward_coarse", "backward_weight"
    on_tensor_cores = {f"folded_tensor_{step}" for step in steps}
    on_tensor_cores |= {"conv3d_tensor_weights", "conv3d_tensor", "conv3d_tensor_backward_weight"}

    def network(precision):
        # rounded maps have ties, which a local maximum would break otherwise: hence the mean
        rng = np.random.default_rng(0)
        return WeakUNet((8, 16), 2, pooling="mean", rng=rng).to("cuda", precision)

    exact, kernels = step(network("fp32"), gpu)
    assert not on_tensor_cores & kernels
    found, kernels = step(network(precision), gpu)
    assert on_tensor_cores <= kernels
    assert network(precision).stored == {"tf32": np.uint32, "bf16": np.uint16}[precision]
    assert not kernels & {"upsample3d_forward", "upsample3d_backward"}  # it is never stored
    assert not any("naive" in kernel or "tiled" in kernel for kernel in kernels)
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() / np.abs(value).max() < MOVES[precision], name
    assert found["count"] != exact["count"]
    again, kernels = step(network(precision).to("cuda"), gpu)
    assert not on_tensor_cores & kernels and again["count"] == exact["count"]


class Apart(Level):
    """The oracle: each convolution and each ReLU for itself."""

    def forward(self, *x, keep=True, inside=None):
        self.relus = [ReLU() for _ in self.convs]
        for conv, relu in zip(self.convs, self.relus, strict=True):
            relu.forward(conv.forward(*x, keep=keep), keep)
            whole = unpack(relu.y, len(conv.params["b"])) * inside
            relu.y = pack(whole, relu.y.dtype)
            x = (relu.y,)
        self.y = relu.y  # where a skip connection joins
        return relu.y

    def backward(self, dy, guided=False, **first):
        for conv, relu in zip(self.convs[::-1], self.relus[::-1], strict=True):
            dy = conv.backward(relu.backward(dy), **first if conv is self.convs[0] else {})
        return dy


@pytest.mark.parametrize("precision", ["fp32", *MOVES])
def test_relus_that_the_convolutions_compute_change_no_bit(precision, gpu):
    def network():
        rng = np.random.default_rng(0)
        return WeakUNet((8, 16), convs_per_level=2, rng=rng).to("cuda", precision)

    fused, kernels = step(network(), gpu, 3)
    assert "relu_backward" in kernels  # of those at which a level begins
    apart = network()
    for level in (*apart.encoder, *apart.decoder):
        level.__class__ = Apart
    expected, kernels = step(apart, gpu, 3)
    assert "relu_forward" in kernels
    for name, value in expected.items():
        np.testing.assert_array_equal(fused[name].view(np.uint32), value.view(np.uint32), name)
    assert np.abs(fused["encoder0.conv0.w"]).max() > 0

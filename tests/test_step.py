"""A step of training on a GPU: what it asks of the GPU beside kernels. No GPU is needed.

The kernels run on the CPU; the arrays of CuPy's part are `OnGpu`, which know when they are made,
when they are let go, and when somebody looks at a number in them, for which a GPU would be waited.
"""

import collections
import types
import weakref

import numpy as np
import pytest

import weakunet.model
from weakunet.bench.counts import NETWORK, PAPER
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import KERNEL_OF
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training import loop as training
from weakunet.training.settings import Settings


class OnGpu(np.ndarray):
    """An array that no expression turns into a plain one, and that nobody may look into."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(a) if isinstance(a, OnGpu) else a for a in inputs]
        self.gpu.launches[ufunc.__name__] += 1
        return self.gpu.array_of(getattr(ufunc, method)(*plain, **kwargs))

    def __getitem__(self, place):
        if isinstance(place, OnGpu):
            return self.gpu.array_of(np.asarray(self)[np.asarray(place)])
        part = super().__getitem__(place)  # of one number CuPy makes an array, too
        return part if isinstance(part, OnGpu) else self.gpu.array_of(part)

    def _look(self, *args):
        raise AssertionError("a number is read back: the host waits for the GPU")

    __float__ = __int__ = __bool__ = __index__ = item = tolist = get = _look


class Gpu:
    """What stands for CuPy, and keeps a record: sizes made, bytes alive, copies, launches."""

    def __init__(self, launch):
        self.sizes, self.alive, self.peak, self.sent, self.read = [], 0, 0, 0, 0
        self.launches, self._launch = collections.Counter(), launch
        OnGpu.gpu = self

    def empty(self, shape, dtype):
        array = OnGpu(shape, dtype)
        array.fill(np.nan if array.dtype.kind == "f" else ~array.dtype.type(0))
        self.sizes.append(array.nbytes)
        self.alive += array.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(array, self._let_go, array.nbytes)
        return array

    def _let_go(self, size):
        self.alive -= size

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)

    def array_of(self, values):
        array = self.empty_like(np.asarray(values))
        array[...] = values
        return array

    def asarray(self, array, dtype):
        assert array.dtype == dtype
        return self.to_device(array, "cuda")

    def to_device(self, array, device):
        self.sent += not isinstance(array, OnGpu)
        return array if isinstance(array, OnGpu) else self.array_of(array)

    def to_host(self, array):
        self.read += isinstance(array, OnGpu)
        return np.asarray(array)

    def launch(self, file, kernel, threads, args):
        self.launches[kernel] += 1
        self._launch(file, kernel, threads, args)


@pytest.fixture
def gpu(cuda_on_cpu, monkeypatch):
    gpu = Gpu(cuda_on_cpu.launch)
    monkeypatch.setattr(backend, "is_cuda", lambda array: isinstance(array, OnGpu))
    monkeypatch.setattr(weakunet.model, "is_cuda", backend.is_cuda)
    monkeypatch.setattr(backend, "array_module", lambda array: gpu)
    monkeypatch.setattr(backend, "launch", gpu.launch)
    for module in (backend, weakunet.model):
        monkeypatch.setattr(module, "to_device", gpu.to_device)
        monkeypatch.setattr(module, "to_host", gpu.to_host)
    return gpu


def trained(gpu, precision, steps, tmp_path, **settings):
    """A record of each step of an epoch (but of its first, which starts the last layer)."""
    rng = np.random.default_rng(0)
    settings = Settings(channels=[8, 16], batch=2, gaussian_head=True, **settings)
    model = WeakUNet(settings.channels, rng=rng).to("cuda", precision)
    run = training.Run(model, settings, tmp_path)
    volumes = gpu.to_device(rng.random((2 * steps, 4, 6, 10), np.float32), "cuda")
    counts = rng.integers(0, 9, 2 * steps).astype(np.float32)
    gpu.sent = gpu.read = 0
    records = []

    def stop():
        records.append(types.SimpleNamespace(sizes=gpu.sizes, peak=gpu.peak, alive=gpu.alive))
        gpu.sizes, gpu.peak = [], gpu.alive
        return False

    gpu.sizes = []
    assert not training.train_epoch(run, volumes, counts, stop)
    return records


@pytest.mark.parametrize("precision", KERNEL_OF)
def test_steps_wait_for_nothing_and_allocate_what_the_first_did(gpu, precision, tmp_path):
    first, *others = trained(gpu, precision, 5, tmp_path, rotate_deg=5.0)
    # sent before the first step: the epoch's order, transforms and counts (and no counts so far)
    assert gpu.sent == 4 and gpu.read == 0
    assert first.sizes == [10 * 8, 10 * 12 * 8, 10 * 4, 10 * 4, 0, *others[0].sizes]
    for record in others:  # nothing of a step stays
        assert record.sizes == others[0].sizes
        assert (record.peak, record.alive) == (others[0].peak, first.alive)
    assert len(others) == 4


@pytest.mark.parametrize(("network", "most"), [(NETWORK, 103), (PAPER, 158)])
def test_a_step_launches_no_more_kernels_than_it_did(gpu, network, most):
    model = WeakUNet(**network, rng=np.random.default_rng(0)).to("cuda", "tf32")
    optimizer, counts = Adadelta(model.params), gpu.to_device(np.ones(1, np.float32), "cuda")
    scans = gpu.to_device(np.ones((1, 1, 4, 4, 4), np.float32), "cuda")
    gpu.launches.clear()
    model.backward(mse_backward(model.forward(scans), counts))
    optimizer.step(model.grads)
    assert gpu.launches["maxpool3d_backward_skip"] == len(model.pools)
    assert gpu.launches.total() <= most

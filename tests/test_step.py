"""A step of training on a GPU: what it asks of the GPU beside kernels. No GPU is needed.

The kernels run on the CPU; the arrays of CuPy's part are `OnGpu`, which know when they are made,
when they are let go, and when somebody looks at a number in them, for which a GPU would be waited.
"""

import collections
import contextlib
import sys
import types
import weakref

import numpy as np
import pytest

import weakunet.model
from weakunet.bench.counts import NETWORK, PAPER
from weakunet.compare.voxelwise import VoxelwiseRun
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import KERNEL_OF
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training import loop as training
from weakunet.training.run import Run
from weakunet.training.settings import Settings


class OnGpu(np.ndarray):
    """An array that no expression turns into a plain one, and that nobody may look into."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(a) if isinstance(a, OnGpu) else a for a in inputs]
        self.gpu.launches[ufunc.__name__] += 1
        if out is None:
            return self.gpu.computed(lambda: getattr(ufunc, method)(*plain, **kwargs))
        self.gpu.do(lambda: getattr(ufunc, method)(*plain, out=np.asarray(out[0]), **kwargs))
        return out[0]  # in place

    def __getitem__(self, place):
        if isinstance(place, OnGpu):
            return self.gpu.computed(lambda: np.asarray(self)[np.asarray(place)])
        part = super().__getitem__(place)  # of one number CuPy makes an array, too
        return part if isinstance(part, OnGpu) else self.gpu.array_of(part)

    def astype(self, dtype, copy=True):
        if self.dtype == dtype and not copy:
            return self
        return self.gpu.computed(lambda: np.asarray(self).astype(dtype))

    def _look(self, *args):
        raise AssertionError("a number is read back: the host waits for the GPU")

    __float__ = __int__ = __bool__ = __index__ = item = tolist = get = _look


class Gpu:
    """What stands for CuPy, and keeps a record: sizes made, bytes alive, copies, launches."""

    def __init__(self, launch):
        self.sizes, self.alive, self.peak, self.sent, self.read = [], 0, 0, 0, 0
        self.launches, self._launch = collections.Counter(), launch
        self.captured = None  # while a graph is captured: what is to be done
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

    def zeros(self, shape, dtype):
        self.launches["zeros"] += 1
        array = self.empty(shape, dtype)
        self.do(lambda: np.asarray(array).fill(0))
        return array

    def array_of(self, values):
        array = self.empty_like(np.asarray(values))
        array[...] = values
        return array

    def do(self, what):
        """Do it, or, while a graph is captured, note it down."""
        what() if self.captured is None else self.captured.append(what)

    def computed(self, make):
        """The array that make() computes; while a graph is captured, not yet."""
        array = self.array_of(make())
        if self.captured is not None:
            self.captured.append(lambda: np.copyto(np.asarray(array), make()))
            array.fill(0)
        return array

    def asarray(self, array, dtype):
        assert array.dtype == dtype
        return self.to_device(array, "cuda")

    def to_device(self, array, device):
        assert isinstance(array, OnGpu) or self.captured is None, "a graph would send it only once"
        self.sent += not isinstance(array, OnGpu)
        return array if isinstance(array, OnGpu) else self.array_of(array)

    def to_host(self, array):
        self.read += isinstance(array, OnGpu)
        return np.asarray(array)

    def launch(self, file, kernel, threads, args):
        self.launches[kernel] += 1
        self.do(lambda: self._launch(file, kernel, threads, args))


class Stream:
    """Of CuPy's streams what backend.captured asks for, and the cupy module around them."""

    def __init__(self, gpu):
        self.gpu, self.replays = gpu, 0
        self.cuda = self.MemoryPool = self
        self.Stream = self.get_current_stream = lambda **options: self
        self.malloc, self.synchronize = None, lambda: None
        self.using_allocator = lambda malloc: contextlib.nullcontext()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __call__(self):
        return self

    def begin_capture(self):
        self.gpu.captured = []

    def end_capture(self):
        todo, self.gpu.captured = self.gpu.captured, None

        def launch():
            self.replays += 1
            for do in todo:
                do()

        return types.SimpleNamespace(launch=launch)


@pytest.fixture
def gpu(cuda_on_cpu, monkeypatch):
    gpu = Gpu(cuda_on_cpu.launch)
    gpu.stream = Stream(gpu)
    monkeypatch.setitem(sys.modules, "cupy", gpu.stream)
    monkeypatch.setattr(training, "SMALL", 0)  # no graphs
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
    run = Run(model, settings, tmp_path)
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


@pytest.mark.parametrize(("network", "most"), [(NETWORK, 92), (PAPER, 132)])
def test_a_step_launches_no_more_kernels_than_it_did(gpu, network, most):
    model = WeakUNet(**network, rng=np.random.default_rng(0)).to("cuda", "tf32")
    optimizer, counts = Adadelta(model.params), gpu.to_device(np.ones(1, np.float32), "cuda")
    scans = gpu.to_device(np.ones((1, 1, 4, 4, 4), np.float32), "cuda")
    gpu.launches.clear()
    model.backward(mse_backward(model.forward(scans), counts))
    optimizer.step(model.grads)
    assert gpu.launches["maxpool3d_backward_skip"] == len(model.pools)
    assert gpu.launches.total() <= most


def two_epochs(gpu, folder, stop_at=None):
    """All that training knows after epochs 3 and 4 of 4, between which the learning rate falls."""
    rng = np.random.default_rng(0)
    settings = Settings(channels=[8, 16], batch=2, epochs=4, rotate_deg=5.0)
    model = WeakUNet(settings.channels, rng=rng).to("cuda", "tf32")
    run = Run(model, settings, folder)
    volumes = gpu.to_device(rng.random((7, 4, 6, 10), np.float32), "cuda")
    counts = rng.integers(0, 9, 7).astype(np.float32)
    for run.epoch in (2, 3):
        run.batch = 0
        stops = [stop_at] if run.epoch == 2 else []  # an interrupted epoch is taken up again
        while training.train_epoch(run, volumes, counts, lambda s=stops: run.batch in s):
            stops.clear()
    known = run.model.params | run.optimizer.state | {"predicted": run.predicted}
    return {name: np.array(np.asarray(value)) for name, value in known.items()}


@pytest.mark.parametrize("stop_at", [None, 2])
def test_a_step_as_one_graph_has_the_bits_of_its_kernels(stop_at, gpu, monkeypatch, tmp_path):
    expected = two_epochs(gpu, tmp_path)
    assert gpu.stream.replays == 0
    monkeypatch.setattr(training, "SMALL", 2**19)
    found = two_epochs(gpu, tmp_path, stop_at)
    # of 2, 2, 2 and 1 scans: the first is computed, the last is another size
    assert gpu.stream.replays == (2 + 2 if stop_at is None else 1 + 0 + 2)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_large_batches_and_runs_that_ask_the_host_take_no_graph(gpu, monkeypatch, tmp_path):
    assert not VoxelwiseRun.one_graph and Run.one_graph
    monkeypatch.setattr(training, "SMALL", 2 * 4 * 6 * 10)  # as large as a batch
    two_epochs(gpu, tmp_path)
    assert gpu.stream.replays == 0

"""What launch() lets through to a kernel, and what it says about the rest."""

import sys
import types

import numpy as np
import pytest

from weakunet.gpu import backend, cuda_source
from weakunet.util.cli import InputError

X = np.ones((2, 3), np.float32)


def relu_arguments(**changes):
    return tuple(({"x": X, "y": X.copy(), "n": 6} | changes).values())


def test_arguments_get_the_kernels_own_widths():
    (x, _, n), real = cuda_source.check_arguments("layers/relu", "relu_forward", relu_arguments())
    assert x is X and real == "float"
    assert type(n) is np.int64
    w = np.ones(5)
    args = w, w, w, w, 1, 0.95, np.float32(1e-6), 5
    checked, real = cuda_source.check_arguments("layers/optim", "adadelta_update", args)
    assert real == "double" and [type(value) for value in checked[4:7]] == [np.float64] * 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"y": X.astype(np.float64)}, TypeError, "relu_forward: y must be float32, not float64"),
        ({"x": X.astype(np.int32)}, TypeError, "relu_forward: x must be float32, not int32"),
        ({"x": X.T}, ValueError, "relu_forward: x is a view with strides"),
        ({"x": X[:, ::-1]}, ValueError, "relu_forward: x is a view with strides"),
        ({"x": 1.0}, TypeError, "relu_forward: x must be an array, not float"),
        ({"n": 6.0}, TypeError, "relu_forward: n must be one number .int64., not float"),
        ({"n": X}, TypeError, "relu_forward: n must be one number .int64., not ndarray"),
        ({"n": 2**63}, ValueError, "relu_forward: n = 9223372036854775808 does not fit"),
        ({"more": 1}, TypeError, r"relu_forward: 4 arguments for 3 \(x, y, n\)"),
    ],
)
def test_wrong_argument_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        cuda_source.check_arguments("layers/relu", "relu_forward", relu_arguments(**changes))


def test_an_int_of_more_than_32_bits_is_refused_where_the_kernel_takes_32():
    args = X, X, X, 2**31
    with pytest.raises(ValueError, match="mse_forward: n = 2147483648 does not fit into int32"):
        cuda_source.check_arguments("layers/loss", "mse_forward", args)


def test_unknown_kernel_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="no such kernel; there are relu_forward, relu_backward"):
        cuda_source.check_arguments("layers/relu", "relu", relu_arguments())


def test_parameter_lists_are_read_from_the_text(monkeypatch):
    text = (
        '// extern "C" __global__ void gone(int a)\n'
        'extern "C" __global__ void __launch_bounds__(64)\n'
        "kernel(const real* __restrict__ x, unsigned char *flags,  // a comment, with a comma\n"
        "       long long n, /* , */ real scale)\n{}\n#define SIZE 12  // voxels\n"
    )
    monkeypatch.setattr(cuda_source, "source", lambda file: text)
    assert cuda_source.kernels("made up") == {
        "kernel": (
            ("x", "real", True),
            ("flags", "unsigned char", True),
            ("n", "long long", False),
            ("scale", "real", False),
        )
    }
    assert cuda_source.constants("made up") == {"SIZE": 12}


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        (1, ((1, 1, 1), (256, 1, 1), 0)),
        (257, ((2, 1, 1), (256, 1, 1), 0)),
        (0, ((0, 1, 1), (256, 1, 1), 0)),
        (((5, 2), (16, 4)), ((5, 2, 1), (16, 4, 1), 0)),
        (((5,), (16,), 70000), ((5, 1, 1), (16, 1, 1), 70000)),
    ],
)
def test_grid_covers_the_threads(threads, expected):
    assert backend.launch_sizes(threads) == expected


def test_grid_larger_than_cuda_takes_is_refused():
    with pytest.raises(ValueError, match="65535"):
        backend.launch_sizes(((1, 65536), (32,)))


# ---- a GPU that is not there: CuPy's part is played by this stand-in ----------------------------


class FakeArray:
    dtype, flags, size = np.dtype(np.float32), types.SimpleNamespace(c_contiguous=True), 6

    def __init__(self, device=0):
        self.device = types.SimpleNamespace(id=device)


FakeArray.__module__ = "cupy"


class CompileException(Exception):
    pass


@pytest.fixture
def fake_cupy(monkeypatch):
    launched = []

    class RawModule:
        def __init__(self, code, options):
            self.code, self.options = code, options
            launched.append(("compiled", options))

        def get_function(self, name):
            if "broken" in self.code:
                raise CompileException("relu.cu(3): error: identifier is undefined")
            return Function(name)

    class Function:
        max_dynamic_shared_size_bytes = 48 * 1024

        def __init__(self, name):
            self.name = name

        def __call__(self, grid, block, args, shared_mem):
            assert shared_mem <= self.max_dynamic_shared_size_bytes
            launched.append((self.name, grid, block, args))

    cupy = types.ModuleType("cupy")
    cupy.RawModule, cupy.launched = RawModule, launched
    cupy.cuda = types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(id=0),
        compiler=types.SimpleNamespace(CompileException=CompileException),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for cached in (backend._compiled, backend._module):
        cached.cache_clear()
    yield cupy
    for cached in (backend._compiled, backend._module):
        cached.cache_clear()


def test_launch_compiles_once_and_passes_grid_block_and_widths(fake_cupy):
    x, y = FakeArray(), FakeArray()
    for _ in range(2):
        backend.launch("layers/relu", "relu_forward", 300, (x, y, 300))
    compiled, *calls = fake_cupy.launched
    assert compiled == ("compiled", ("-Dreal=float", "-Dstored=float", "--std=c++17"))
    assert calls == [("relu_forward", (2, 1, 1), (256, 1, 1), (x, y, 300))] * 2
    assert type(calls[0][3][2]) is np.int64


def test_launch_asks_for_shared_memory_beyond_48_kb(fake_cupy):
    arrays = FakeArray(), FakeArray()
    backend.launch("layers/relu", "relu_forward", ((1,), (32,), 100_000), (*arrays, 32))
    assert fake_cupy.launched[1:] == [("relu_forward", (1, 1, 1), (32, 1, 1), (*arrays, 32))]


def test_launch_of_no_threads_does_nothing(fake_cupy):
    backend.launch("layers/relu", "relu_forward", 0, (FakeArray(), FakeArray(), 0))
    assert fake_cupy.launched == []


def test_launch_refuses_an_array_of_another_device(fake_cupy):
    with pytest.raises(TypeError, match="relu_forward: y is not on the GPU"):
        backend.launch("layers/relu", "relu_forward", 6, (FakeArray(), X, 6))
    with pytest.raises(ValueError, match="x is on GPU 1, but the current one is 0"):
        backend.launch("layers/relu", "relu_forward", 6, (FakeArray(1), FakeArray(), 6))


def test_compile_error_names_the_kernel_and_keeps_the_compilers_lines(fake_cupy, monkeypatch):
    broken = cuda_source.source("layers/relu") + "// broken"
    monkeypatch.setattr(cuda_source, "source", lambda file: broken)
    with pytest.raises(RuntimeError, match=r"(?s)relu.cu, relu_forward \(float\).*relu.cu\(3"):
        backend.launch("layers/relu", "relu_forward", 6, (FakeArray(), FakeArray(), 6))


def test_out_of_memory_says_what_to_lower():
    with pytest.raises(InputError, match="out of memory .*Unable.*lower the batch size"):
        with backend.explain_out_of_memory():
            np.empty((2**20, 2**20, 2**10))

"""Every .cu file compiles for real GPUs with CUDA's own compiler, which needs no GPU for that."""

import functools
import itertools

import pytest

from weakunet.bench import compile as bench_compile
from weakunet.gpu import cuda_source
from weakunet.layers.conv import tensor
from weakunet.util.cli import InputError

try:
    bench_compile.compile_file("layers/relu", "float", "sm_90")
    REASON = ""
except InputError as error:
    REASON = str(error)
ON_TENSOR_CORES = tensor.TENSOR, tensor.FOLDED
compiled = functools.cache(bench_compile.compile_file)
needs_nvrtc = pytest.mark.skipif(bool(REASON), reason=REASON)


# for the newest cards; the others are many, and slow
NEWEST = ("float", "sm_90"), ("tf32", "sm_90")
TARGETS = [
    pytest.param(file, *target, marks=[] if target in NEWEST else pytest.mark.slow)
    for file in cuda_source.cu_files()
    for target in bench_compile.targets(file)
]


@needs_nvrtc
@pytest.mark.parametrize(("file", "real", "architecture"), TARGETS)
def test_file_compiles_without_warnings_and_float_does_not_spill(file, real, architecture):
    rows, warnings = compiled(file, real, architecture)
    assert warnings == []
    assert {row["kernel"] for row in rows} == set(cuda_source.kernels(file))
    assert all(0 < row["registers"] <= 255 for row in rows)
    assert all(row["shared_bytes"] <= 48 * 1024 for row in rows)
    assert real == "double" or all(row["spill_bytes"] == 0 for row in rows)


@needs_nvrtc
def test_conv3d_tiled_leaves_room_for_two_blocks_of_256_threads_on_an_sm():
    rows, _ = compiled("layers/conv/tiled", "float", "sm_90")
    steps = "forward_tiled", "backward_input_tiled", "backward_weight_tiled_k3"
    convolutions = [row for row in rows if row["kernel"].endswith(steps)]
    assert len(convolutions) == 3
    assert max(row["registers"] for row in convolutions) <= 65536 / 2 / 256


@needs_nvrtc
@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
def test_tensor_kernels_leave_room_for_two_blocks_on_an_sm(architecture):
    sizes = tensor.SIZES
    threads = {
        "conv3d_tensor": "THREADS",
        "conv3d_tensor_backward_weight": "DW_THREADS",
        "conv3d_tensor_backward_first": "FIRST_THREADS",
        "folded_tensor_forward": "UP_THREADS",
        "folded_tensor_backward_coarse": "UP_THREADS",
        "folded_tensor_backward_weight": "UP_DW_THREADS",
    }
    for stored in cuda_source.PACKED_DTYPES.values():
        rows = [row for file in ON_TENSOR_CORES for row in compiled(file, stored, architecture)[0]]
        registers = {row["kernel"]: row["registers"] for row in rows}
        for kernel, block in threads.items():
            assert registers[kernel] <= 65536 / 2 / sizes[block]


@pytest.mark.parametrize(("name", "blocks"), [("CONV", 2), ("DW", 2), ("FIRST", 3)])
def test_shared_memory_is_there_for_the_blocks_that_registers_leave_room_for(name, blocks):
    folded = ["UP", "UP_BACK", "UP_DW"] if name == "CONV" else []
    for kernel in (name, *folded):
        used = tensor.SIZES[f"{kernel}_BYTES"]
        assert used <= 99 * 1024  # what a block may have on a GeForce
        assert blocks * (used + 1024) <= 228 * 1024  # an SM of an H100; 1 KB a block is CUDA's


def test_tensor_kernels_are_for_packed_arrays_and_ampere_or_newer():
    packed = list(itertools.product(("tf32", "bfloat16"), ("sm_80", "sm_90")))
    for file in ON_TENSOR_CORES:
        assert bench_compile.targets(file) == packed
    assert bench_compile.targets("layers/relu")[8:] == packed
    assert len(bench_compile.targets("layers/linear")) == 8


@needs_nvrtc
def test_warning_and_error_of_the_compiler_are_reported(monkeypatch):
    text = 'extern "C" __global__ void wrong(real* x)\n{\n    int unused;\n}\n'
    monkeypatch.setattr(cuda_source, "source", lambda file: text)
    assert any(
        "unused" in line for line in bench_compile.compile_file("wrong", "float", "sm_80")[1]
    )
    monkeypatch.setattr(
        cuda_source, "source", lambda file: text.replace("int unused", "int x[0] =")
    )
    with pytest.raises(RuntimeError, match=r"(?s)wrong.cu \(float, sm_80\).*wrong.cu\(3\): error"):
        bench_compile.compile_file("wrong", "float", "sm_80")


def test_registers_are_printed_per_kernel_and_architecture(capsys):
    row = {"kernel": "relu_forward", "real": "float", "shared_bytes": 0, "spill_bytes": 0}
    registers = dict(zip(bench_compile.ARCHITECTURES, (8, 10, 12, 14), strict=True))
    bench_compile.print_registers(
        [row | {"architecture": a, "registers": r} for a, r in registers.items()]
    )
    assert "| relu_forward | float | 8 | 10 | 12 | 14 | 0 | 0 |" in capsys.readouterr().out

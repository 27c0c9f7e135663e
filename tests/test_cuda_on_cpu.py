"""Tests of the harness itself: it runs right kernels right, and finds the fault in wrong ones."""

from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import harness
from cuda_on_cpu.harness import CudaOnCpu, KernelError
from rounding import to_bf16

from weakunet.gpu import backend
from weakunet.layers import relu

PLANTED = Path(__file__).parent / "cuda_on_cpu" / "planted"
SEEDS = {None: range(6), "address": range(2), "thread": range(1)}
pytestmark = pytest.mark.skipif(
    bool(harness.reason_not_to_run()), reason=str(harness.reason_not_to_run())
)


def launch(kernel, threads, args, *, file="wrong", seed=0, sanitize=None):
    if harness.reason_not_to_run(sanitize):
        pytest.skip(harness.reason_not_to_run(sanitize))
    if isinstance(threads, tuple) and isinstance(threads[0], int):  # (blocks, threads in each)
        threads = *((size,) for size in threads[:2]), *threads[2:]
    CudaOnCpu(seed, sanitize).launch(PLANTED / file, kernel, threads, args)


def fault(kernel):
    """wrong.cu:LINE of the fault that is planted in a kernel: the next line that says '// here'."""
    lines = (PLANTED / "wrong.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f"void {kernel}(" in line)
    return f"wrong.cu:{next(i for i in range(start, 999) if '// here' in lines[i]) + 1}"


def random(n, dtype=np.float32):
    return np.random.default_rng(0).normal(size=n).astype(dtype)


def empty(n, dtype=np.float32):
    return np.full(n, np.nan if np.dtype(dtype).kind == "f" else -1, dtype)


# ---- right kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_barrier_lets_threads_read_each_others_values(dtype, sanitize):
    x = random(5 * 64, dtype)
    for seed in SEEDS[sanitize]:
        y = empty(x.size, dtype)
        launch("reverse_blocks", (5, 64), (x, y), file="right", seed=seed, sanitize=sanitize)
        np.testing.assert_array_equal(y, x.reshape(5, 64)[:, ::-1].ravel())


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_block_sums_agree_with_numpy_in_every_order(dtype, sanitize):
    x = random(7 * 1001, dtype)
    sums = []
    for seed in SEEDS[sanitize]:
        y = empty(7, dtype)
        args = (x, y, 1001)
        launch("block_sums", (7, 256), args, file="right", seed=seed, sanitize=sanitize)
        sums.append(y)
    expected = x.reshape(7, 1001).astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums[0], expected, rtol=0, atol=50 * np.finfo(dtype).eps * 30)
    assert all(np.array_equal(y, sums[0]) for y in sums)  # a fixed order of summation


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_warp_operations_give_what_the_programming_guide_says(dtype):
    lane = np.arange(32)
    y, votes = empty(192, dtype), empty(64, np.int32)
    launch("warp_operations", (1, 32), (lane.astype(dtype), y, votes), file="right")
    expected = [
        np.full(32, 5),
        np.where(lane < 3, lane, lane - 3),
        np.where(lane % 8 + 3 > 7, lane, lane + 3),
        lane ^ 6,
        lane // 4 * 4 + (lane + 1) % 4,
        np.where(lane < 16, lane + (lane ^ 8), lane),
    ]
    np.testing.assert_array_equal(y.reshape(6, 32), expected)
    ballot = sum(1 << i for i in range(32) if i % 3 == 0)
    np.testing.assert_array_equal(votes.view(np.uint32)[:32], np.full(32, ballot, np.uint32))
    np.testing.assert_array_equal(votes[32:], np.full(32, 1))  # any, not all


def test_indices_are_cudas_in_a_three_dimensional_grid():
    y = empty(2 * 3 * 4 * 5 * 3 * 2, np.int32)
    launch("where_am_i", ((4, 3, 2), (5, 3, 2)), (y,), file="right")
    bz, by, bx, tz, ty, tx = np.indices((2, 3, 4, 2, 3, 5))
    expected = ((bz * 10 + by) * 10 + bx) * 1000 + (tz * 10 + ty) * 10 + tx
    np.testing.assert_array_equal(y, expected.ravel())


def test_integer_atomics_count(monkeypatch):
    x, count = random(1000), np.zeros(1, np.int32)
    launch("count_positive", 1000, (x, count, 1000), file="right", sanitize="thread")
    assert count[0] == (x > 0).sum()


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
def test_barrier_with_a_vote_tells_all_threads_of_the_block(sanitize):
    x, y = -np.ones(4 * 64, np.float32), empty(4 * 64, np.int32)
    x[[70, 250]] = 1  # in the second and the last of four blocks
    launch("any_positive", (4, 64), (x, y), file="right", sanitize=sanitize)
    np.testing.assert_array_equal(y.reshape(4, 64), np.repeat([[0], [1], [0], [1]], 64, axis=1))


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
def test_mma_multiplies_matrices_whose_low_bits_do_not_count(sanitize):
    a, b = random(16 * 8).reshape(16, 8), random(300)[-64:].reshape(8, 8)
    for rounded, add in ((0, 0), (1, 0x1000)):
        cut = [((m.view(np.uint32) + add) & 0xFFFFE000).view(np.float32) for m in (a, b)]
        d = random(128).reshape(16, 8) * 3
        expected = d + cut[0].astype(np.float64) @ cut[1]
        launch("multiply_matrices", (1, 32), (a, b, d, rounded), file="right", sanitize=sanitize)
        np.testing.assert_allclose(d, expected, rtol=0, atol=2e-6)
        assert abs(a @ b - cut[0] @ cut[1]).max() > 1e-3  # so the test can tell


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
def test_mma_of_pairs_multiplies_matrices_rounded_to_bfloat16(sanitize):
    a, b = random(16 * 16).reshape(16, 16), random(400)[-128:].reshape(16, 8)
    d = random(128).reshape(16, 8) * 3
    expected = d + to_bf16(a).astype(np.float64) @ to_bf16(b)
    full = d + a.astype(np.float64) @ b
    launch("multiply_pairs", (1, 32), (a, b, d), file="right", sanitize=sanitize)
    np.testing.assert_allclose(d, expected, rtol=0, atol=4e-6)
    assert abs(d - full).max() > 1e-2  # so the test can tell


def test_rounding_to_bfloat16_goes_to_the_even_neighbour_and_leaves_what_is_no_number():
    step = 2.0**-7  # between neighbours of 1 in bfloat16
    values = [1 + step / 2, -1 - 3 * step / 2, 1 + step * 0.51, np.inf, np.nan, 0, -3.4e38, 1e-40]
    a, b, d = np.zeros((16, 16), "f4"), np.eye(16, 8, dtype=np.float32), np.zeros((16, 8), "f4")
    a[range(8), range(8)] = values
    launch("multiply_pairs", (1, 32), (a, b, d), file="right")
    np.testing.assert_array_equal(d[range(3), range(3)], [1, -1 - 2 * step, 1 + step])
    assert np.isinf(d[3, 3]) and np.isnan(d[4, 4]) and d[5, 5] == 0 and d[6, 6] == -np.inf
    assert d[7, 7] == to_bf16(np.float32([1e-40]))[0] > 0


def test_rounding_to_tf32_goes_to_the_nearest_and_leaves_what_is_no_number():
    step = 2.0**-10  # between neighbours of 1 in TF32
    values = np.array([1 + step / 2, -1 - step / 2, 1 + step * 0.49, np.inf, np.nan, 0], np.float32)
    a, b, d = np.zeros((16, 8), np.float32), np.eye(8, dtype=np.float32), np.zeros((16, 8), "f4")
    for row, value in enumerate(values):
        a[row, row] = value
    launch("multiply_matrices", (1, 32), (a, b, d, 1), file="right")
    assert (d[0, 0], d[1, 1], d[2, 2]) == (1 + step, -1 - step, 1)
    assert np.isinf(d[3, 3]) and np.isnan(d[4, 4]) and d[5, 5] == 0


# ---- wrong kernels: barriers -----------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["no_barrier", "one_barrier_of_two", "no_syncwarp"])
def test_missing_barrier_shows_in_the_numbers_of_most_orders(kernel):
    x = random(3 * 64)
    results = []
    for seed in SEEDS[None]:
        y = empty(64)
        args = {"no_barrier": (x, y), "no_syncwarp": (x, y)}.get(kernel, (x, y, 3))
        launch(kernel, (1, 32 if kernel == "no_syncwarp" else 64), args, seed=seed)
        results.append(y)
    right = {
        "no_barrier": x[:64][::-1],
        "one_barrier_of_two": x.reshape(3, 64)[:, ::-1].sum(axis=0, dtype=np.float32),
        "no_syncwarp": np.r_[x[np.arange(32) ^ 1], empty(32)],
    }[kernel]
    wrong = [not np.allclose(y, right, rtol=1e-5, equal_nan=True) for y in results]
    assert sum(wrong) >= 5


@pytest.mark.parametrize("kernel", ["no_barrier", "one_barrier_of_two", "no_syncwarp"])
def test_missing_barrier_is_a_race_for_the_thread_sanitizer(kernel):
    x, y = random(3 * 64), empty(64)
    args = (x, y, 3) if kernel == "one_barrier_of_two" else (x, y)
    with pytest.raises(KernelError, match=f"(?s){kernel}.*data race.*{fault(kernel)}"):
        launch(kernel, (1, 32 if kernel == "no_syncwarp" else 64), args, sanitize="thread")


COPIES = ["no_wait", "late_wait", "early_copy"]


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
def test_asynchronous_copies_to_dynamic_shared_memory(sanitize):
    x = random(5 * 64)
    for seed in SEEDS[sanitize]:
        y = empty(5 * 64)
        args = {"file": "right", "seed": seed, "sanitize": sanitize}
        launch("reverse_rows", (1, 64, 512), (x, y, 5), **args)
        np.testing.assert_array_equal(y.reshape(5, 64), x.reshape(5, 64)[:, ::-1])


@pytest.mark.parametrize("kernel", COPIES)
def test_missing_wait_and_early_copy_show_in_the_numbers_of_most_orders(kernel):
    x, wrong = random(5 * 64), 0
    for seed in SEEDS[None]:
        y = empty(5 * 64)
        launch(kernel, (1, 64, 512), (x, y, 5), seed=seed)
        wrong += not np.array_equal(y.reshape(5, 64), x.reshape(5, 64)[:, ::-1])
    assert wrong >= 5


@pytest.mark.parametrize("kernel", COPIES[1:])
def test_late_wait_and_early_copy_are_races_for_the_thread_sanitizer(kernel):
    with pytest.raises(KernelError, match=f"(?s){kernel}.*data race.*{fault(kernel)}"):
        launch(kernel, (1, 64, 512), (random(5 * 64), empty(5 * 64), 5), sanitize="thread")


def test_access_behind_dynamic_shared_memory_is_found_with_its_line():
    with pytest.raises(KernelError, match=f"(?s)heap-buffer-overflow.*{fault('behind_dynamic')}"):
        launch("behind_dynamic", (1, 64, 256), (empty(64),), sanitize="address")


def test_two_blocks_that_write_one_output_are_a_race_for_the_thread_sanitizer():
    with pytest.raises(KernelError, match=f"(?s)data race.*{fault('blocks_race')}"):
        launch("blocks_race", (2, 32), (random(64), empty(32)), sanitize="thread")


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "divergent barrier.* 32 of 64 threads .*wait at __syncthreads in li"),
        ("two_barriers", "divergent barrier.* 32 of 64 .*in line [0-9]+; 32 of 64 .*in line"),
        ("deadlock", "deadlock.*wait at __syncthreads.*wait at __shfl_xor_sync in line"),
        ("unnamed_lane", "deadlock.* 32 of 64 .*wait at a warp operation whose mask leaves them"),
    ],
)
def test_threads_that_never_meet_are_reported(kernel, message, sanitize):
    with pytest.raises(KernelError, match=f"wrong.cu, {kernel}: {message}"):
        launch(kernel, (1, 64), (empty(64),), sanitize=sanitize)


def test_early_return_before_a_barrier_is_reported():
    x, y = random(100), empty(100)
    expected = r"divergent barrier in block \(1,0,0\): 36 of 64 .* 28 of 64 .* have ended"
    with pytest.raises(KernelError, match=expected):
        launch("early_return", (2, 64), (x, y, 100))


def test_next_launch_works_after_one_that_went_wrong():
    x, y = random(64), empty(64)
    for _ in range(3):
        with pytest.raises(KernelError):
            launch("divergent_barrier", (1, 64), (empty(64),))
    launch("no_guard", (1, 64), (x, y, 64))
    np.testing.assert_array_equal(y, 2 * x)


# ---- wrong kernels: memory -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kernel", "threads", "n", "what"),
    [
        ("reads_behind", 64, 50, "heap-buffer-overflow.*READ"),
        ("reads_behind_shared", (1, 64), None, "global-buffer-overflow.*READ"),
        ("no_guard", 64, 50, "heap-buffer-overflow.*WRITE"),
    ],
)
def test_access_out_of_bounds_is_found_with_its_line(kernel, threads, n, what, dtype):
    x, y = random(n or 64, dtype), empty(n or 64, dtype)
    with pytest.raises(KernelError, match=f"(?s){kernel}.*{what}.*{fault(kernel)}"):
        launch(kernel, threads, (x, y, n) if n else (x, y), sanitize="address")


def test_offset_that_overflows_32_bits_is_found():
    with pytest.raises(KernelError, match=f"{fault('narrow_offset')}.*signed integer overflow"):
        launch("narrow_offset", (1, 32), (empty(32), 65536, 65536), sanitize="address")


def test_unwritten_outputs_stay_poison(cuda_on_cpu):
    x, y = random(100), np.empty(100, np.float32)
    cuda_on_cpu.launch(PLANTED / "wrong", "unwritten", 100, (x, y, 100))
    np.testing.assert_array_equal(np.isnan(y), np.arange(100) % 3 == 0)


@pytest.mark.parametrize("sanitize", [None, "address", "thread"])
def test_shared_memory_is_poison_at_the_start_of_every_block(sanitize):
    y, whole = np.zeros(96, np.float32), np.zeros(96, np.int32)
    launch("unwritten_shared", (3, 32), (random(32), y, whole), sanitize=sanitize)
    assert np.isnan(y).all()
    assert (whole == -1).all()


def test_shuffle_from_a_lane_outside_the_mask_gives_nan():
    y = empty(32)
    launch("absent_lane", (1, 32), (y,))
    np.testing.assert_array_equal(np.isnan(y), np.arange(32) < 16)


def test_mma_by_half_a_warp_gives_nan():
    y = np.zeros(16, np.float32)
    launch("half_a_warp", (1, 32), (y,))
    assert np.isnan(y).all()


# ---- the Python side -------------------------------------------------------------------------


def test_text_that_does_not_compile_is_an_error_with_its_line():
    with pytest.raises(KernelError, match=r"(?s)broken.cu \(float\) does not compile.*:6:"):
        launch("does_not_compile", (1, 32), (random(32), empty(32)), file="broken")


def test_shared_array_in_a_template_is_refused():
    with pytest.raises(KernelError, match="template.cu: __shared__ inside a template"):
        launch("template_shared", (1, 32), (random(32), empty(32)), file="template")


def test_arguments_are_checked_as_for_the_gpu():
    x, y = random(64), empty(64)
    with pytest.raises(TypeError, match="float32, not float64"):
        launch("reverse_blocks", (1, 64), (x, y.astype(np.float64)), file="right")
    with pytest.raises(ValueError, match="view"):
        launch("reverse_blocks", (1, 64), (x[::-1], y), file="right")
    with pytest.raises(ValueError, match="1024 threads"):
        launch("reverse_blocks", (1, 1025), (x, y), file="right")


def test_layers_run_their_kernels_under_the_fixture(cuda_on_cpu):
    x = random((2, 3, 5, 7, 1))
    np.testing.assert_array_equal(relu.relu_forward(x), np.maximum(x, 0))
    assert cuda_on_cpu.launched == {("layers/relu", "relu_forward")}
    assert backend.is_cuda(x)


def test_fixture_poisons_new_arrays_of_every_dtype(cuda_on_cpu):
    assert np.isnan(np.empty((2, 3), np.float32)).all()
    assert np.isnan(np.empty_like(np.zeros((2, 3)).T)).all()
    assert (np.empty(3, np.int32) == -1).all()
    assert (np.empty(3, np.uint8) == 255).all()

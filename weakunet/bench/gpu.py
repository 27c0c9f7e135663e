"""The GPU half of `python -m weakunet.bench`: our kernels beside PyTorch's (cuDNN) in one run.

Every distinct convolution of four networks, then their whole training steps and predictions. Ours
run in fp32 and with convolutions in TF32 and bf16 (`ours_s`, `ours_tf32_s`, `ours_bf16_s`).
PyTorch, where it is installed, runs in fp32 without TF32, in TF32, and in bf16 (a whole step: under
autocast), each in both memory layouts with cuDNN's benchmark mode, whole networks also through
torch.compile with CUDA graphs. The fastest counts: `torch_by` and the like in --json say which.

A convolution is queued while the GPU is busy with something else, so that the host's time does not
count; in the time of a step it does. Small convolutions stay in the GPU's cache from call to call,
on both sides. `share` and `share_tf32` are this card's floor (counts.py) over our time, '-' for a
card that is not listed there. The MB of a step or prediction are the peak of what it allocates
beyond its weights and input.
"""

import datetime
from functools import partial

import numpy as np

from weakunet.bench import counts, runs
from weakunet.bench.check import print_installation
from weakunet.bench.runs import ENDS, network_run, pytorch
from weakunet.gpu import backend
from weakunet.util.cli import progress

COLUMNS = ["name", "size", *runs.COLUMNS, "naive_s", "floor_s", "floor_tf32_s"]
COLUMNS += ["share", "share_tf32"]
STEP_COLUMNS = COLUMNS + [f"{who}{end}_mb" for end in ENDS.values() for who in ("ours", "torch")]
TORCH_DEVICE = "cuda"


def measure(rounds, only=""):
    """All rows of the tables whose name contains `only` (dicts)."""
    import cupy

    print(datetime.date.today())
    print_installation()
    if pytorch:
        print(pytorch.versions())
    device, found = backend.device_name("cuda"), []
    listed = (key for key in counts.DEVICES if key in device.lower().replace(" ", "-"))
    limits = counts.DEVICES.get(next(listed, None))
    for row, (subject, what) in progress(counts.to_time(limits, only), "bench"):
        alone, sides = isinstance(subject, counts.Layer), None  # frees what the last row held
        sides = runs.sides_of(subject, what, "cuda", tuple(ENDS), TORCH_DEVICE)
        times = runs.in_turn(sides, rounds, partial(device_seconds, hold=alone), warm_up=3)
        row |= {"device": device, "threads": None} | runs.compared(times)
        for end in ("", "_tf32"):
            if limits and row[f"ours{end}_s"]:
                row[f"share{end}"] = row[f"floor{end}_s"] / row[f"ours{end}_s"]
        found.append(row if alone else row | peak_memory(subject, what, sides))
        cupy.get_default_memory_pool().free_all_blocks()
        if pytorch:
            pytorch.torch.cuda.empty_cache()
    return found


def device_seconds(run, hold=False):
    """Seconds of `run()` on the GPU, between two events on the stream it works on.

    hold: keep the GPU busy with a millisecond of copying before the first event, in which the host
    queues all of `run()`; else the GPU may wait for the host, and that counts.
    """
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    if hold:
        busy = cupy.empty((2, 2**27), np.float32)  # two halves of 512 MB
        for _ in range(4):
            cupy.copyto(busy[0], busy[1])
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1000


def peak_memory(step, what, sides):
    """Columns of MB that each precision allocates beyond what lives between its runs.

    Ours run on a pool of their own: of the shared pool, large pieces in which something small still
    lives would count as a whole. CUDA graphs, ours and of PyTorch's compiled runs, hold their
    memory between the calls and are left out.
    """
    import cupy

    row = {}
    for mode, end in ENDS.items():
        run, pool = network_run(step, what, "cuda", np.float32, mode, False), cupy.cuda.MemoryPool()
        run()
        with cupy.cuda.using_allocator(pool.malloc):
            run()
        row[f"ours{end}_mb"] = pool.total_bytes() / 2**20
        ways = [side for side in sides if side.startswith(f"torch {mode}")]
        peaks = [pytorch.peak_mb(sides[side]) for side in ways if "compiled" not in side]
        row[f"torch{end}_mb"] = min(peaks, default=None)
    return row

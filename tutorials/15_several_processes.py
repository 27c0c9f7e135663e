# %% [markdown]
# # 15. Several processes, one network
#
# **Question.** Two computers each train on half of every batch. What must they tell each other, and
# when, so that the result is the network that one computer would have trained?
#
# **You will see** the gradient of a batch put together from its parts, by hand and by the file that
# training with `mpirun` uses; and when the exchange is cheap. The picture shows it, with the speed
# of several processes on THIS computer.
#
# **Takes** about 10 seconds on 2 cores. The last measurement needs MPI (`apt-get install
# openmpi-bin`, `pip install mpi4py`); without it, the lesson says so and shows the rest. Lesson 3
# explains gradients, lesson 8 training.

# %%
import contextlib
import importlib.util
import inspect
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lesson
import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from weakunet.data.phantom import simulate_cohort
from weakunet.figures.drawing import line_style
from weakunet.layers.loss import mse_backward
from weakunet.model import WeakUNet
from weakunet.training.mpi import Ranks
from weakunet.util.threads import cores, set_threads

# %% [markdown]
# ## Where can a batch be cut?
#
# The network sees each scan alone. Only the loss looks at all N counts of a batch: it is a mean,
# and ours counts the error that all scans have in common a tenth (lesson 8). The N counts determine
# dL/dcount of every scan. From there on it is a sum: a weight's gradient is the sum of those that
# the scans contribute.
#
# By hand, in one process: two networks with equal weights take 3 scans and 1 of a batch of 4.

# %%
scans = simulate_cohort("tiny", {"train": 4}, seed=15)["train"]
batch = np.stack([scan.volume.array for scan in scans])[:, None]  # (N, 1, D, H, W)
counts = np.array([scan.count for scan in scans], np.float32)
COMMON = 0.1  # weight of the common error in training


def new_network(channels=(8, 16, 32), convs_per_level=1):
    return WeakUNet(channels, convs_per_level, rng=np.random.default_rng(0))


def flat(grads):
    return np.concatenate([grad.ravel() for grad in grads.values()])


def gradient(model, part):
    """All gradients, one after another, of the loss of a part of the batch."""
    model.backward(mse_backward(model.forward(batch[part]), counts[part], COMMON))
    return flat(model.grads)


whole = gradient(new_network(), slice(0, 4))
parts, networks = (slice(0, 3), slice(3, 4)), (new_network(), new_network())
predicted = [model.forward(batch[part]) for model, part in zip(networks, parts, strict=True)]
dcount = mse_backward(np.concatenate(predicted), counts, COMMON)  # of all 4 counts
for model, part in zip(networks, parts, strict=True):
    model.backward(dcount[part])
total = flat(networks[0].grads) + flat(networks[1].grads)


def difference(a, b):
    return abs(a - b).max() / abs(b).max()


print(f"sum of the parts against the whole batch: {difference(total, whole):.0e}")
assert difference(total, whole) < 1e-5
three, one = (gradient(new_network(), part) for part in parts)
for name, mean in (
    ("mean of the parts' own gradients", (three + one) / 2),
    ("the same, weighted with 3 scans and 1", 3 / 4 * three + 1 / 4 * one),
):
    print(f"{name}: {difference(mean, whole):.0%} off")

# %% [markdown]
# The first number is rounding: float32 sums in another order. The second is a common mistake: a
# part with fewer scans counts too much. Nobody notices it while all parts have the same length (in
# the last batch of an epoch they often do not). The third would be right if the loss were only a
# mean over scans. But the common error of a part is not that of the batch.
#
# ## The same by the package
#
# `weakunet/training/mpi.py` does this between processes, in two messages per step. First every rank
# (MPI's word for a process) sends its counts to all others; MPI calls that an *allgather*. After
# the backward pass it sends its gradients in the same way. EVERY rank adds up all of them, in the
# order of the ranks, and takes the optimizer's step. The same numbers, added in the same order,
# give the same bits. So weights that were equal stay equal, and need not be sent.
#
# Here two threads stand in for two processes, and a shared list for the cable:


# %%
class Table:
    """What `Ranks` needs of MPI: put your array on the table, wait for the others, take all."""

    def __init__(self, rank, arrays, everybody):
        self.rank, self.size, self.arrays, self.everybody = rank, len(arrays), arrays, everybody

    def Allgather(self, mine, all_):  # noqa: N802 (MPI's name)
        self.arrays[self.rank] = mine
        self.everybody.wait()
        all_[:] = self.arrays
        self.everybody.wait()


def take_part(ranks, model, batch, counts, part):
    """What a rank does in a step of training: leave the whole batch's gradients in model.grads."""
    predicted = counts * 0  # 0 for the scans of others
    predicted[part] = model.forward(batch[part])
    dcount = mse_backward(ranks.sum(predicted), counts, COMMON)
    model.backward(dcount[part])
    ranks.sum_gradients(model.grads)


def work(rank, arrays, everybody, results):
    ranks, model = Ranks(Table(rank, arrays, everybody)), new_network()
    take_part(ranks, model, batch, counts, ranks.part(4))
    results[rank] = flat(model.grads)


arrays, results, everybody = [None] * 2, [None] * 2, threading.Barrier(2)
workers = [threading.Thread(target=work, args=(r, arrays, everybody, results)) for r in (0, 1)]
with threadpool_limits(1):  # numpy's own threads would add in another order
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
assert np.array_equal(*results)
print(f"two ranks: the same bits; against the whole batch {difference(results[0], whole):.0e}")
assert difference(results[0], whole) < 1e-5

# %% [markdown]
# ## What is sent, in bytes
#
# In each step, one number per parameter and one per scan, its predicted count. The feature maps,
# which are by far the largest, are not sent: the process that made them keeps them for backward.
#
# Take two networks: the default one at the phantom's size, and one of the paper's scale (the paper
# gives no numbers; we take 32, 64 and 128 maps and two convolutions per level).


# %%
def sizes_in_bytes(channels, convs, shape):
    """4 bytes per number: parameters; one scan; the maps that one scan's forward pass makes."""
    parameters = sum(value.size for value in new_network(channels, convs).params.values())
    levels = [*enumerate(channels), *enumerate(channels[:-1])]  # on the way down, and up
    maps = sum(convs * c * np.prod(shape) // 8**i for i, c in levels)
    return {"gradient": 4 * parameters, "one scan": 4 * np.prod(shape), "its maps": 4 * maps}


sizes = {
    "default": sizes_in_bytes((8, 16, 32), 1, batch.shape[2:]),
    "paper's scale": sizes_in_bytes((32, 64, 128), 2, (84, 128, 168)),
}
for name, each in sizes.items():
    print(f"{name}:", ", ".join(f"{what} {size / 1e6:.2f} MB" for what, size in each.items()))

# %% [markdown]
# Convolutions make the gradient small: a few thousand weights serve every voxel. One layer that
# connected every voxel of lesson 2's maps with every other would have 537 million.
#
# ## When is the exchange cheap?
#
# When a step computes much longer than it sends. The step is measured here; sending is estimated as
# bytes / bandwidth. With P ranks each receives P - 1 gradients. So the more ranks there are, the
# longer sending takes, and in the end it takes longer than computing.
#
# Libraries for thousands of ranks send partial sums around a ring. Then each rank receives
# 2 (P - 1) / P gradients, fewer than two, however many ranks there are (exercise set 15 builds
# one). The price: the sums of different numbers begin at different ranks.


# %%
def seconds_per_step(threads, steps=5):
    """Median time of forward and backward for the batch of 4; the first, which warms up, aside."""
    set_threads(threads)
    model, times = new_network(), []
    for _ in range(steps + 1):
        started = time.perf_counter()
        gradient(model, slice(0, 4))
        times.append(time.perf_counter() - started)
    set_threads()
    return statistics.median(times[1:])


step = seconds_per_step(threads=1)
print(f"a step of the default network on one core here: {1e3 * step:.0f} ms")
CABLES = {"1 Gbit/s": 1e9 / 8, "100 Gbit/s": 100e9 / 8}  # bytes per second
for name, bandwidth in CABLES.items():
    send = sizes["default"]["gradient"] / bandwidth
    print(f"receiving one gradient at {name}: {1e3 * send:.3f} ms, {send / step:.2%} of the step")

# %% [markdown]
# ## As measured
#
# The script below does the same as `take_part` in training's own processes, with one thread each.
# `mpirun -n 2` starts it twice; each process asks MPI which one it is. Every rank computes its part
# of the same batch of 4 and receives all gradients, so the exchange is in the time.
#
# Beside it, the other way to use several cores: one process with several threads, which the layers
# start by themselves. They share the scans' memory, but they cannot use a second computer or GPU.
# And they wait for each other in every layer, processes only twice in a step: with scans as small
# as these, that can matter more than what is sent.

# %%
WORKER = f"""
import statistics, sys, time
sys.path.insert(0, {str(lesson.ROOT)!r})
import numpy as np
from weakunet.layers.loss import mse_backward
from weakunet.model import WeakUNet
from weakunet.training.mpi import join
from weakunet.util.threads import set_threads

{inspect.getsource(take_part)}
with join() as ranks, np.load("batch.npz") as file:
    set_threads(1)
    batch, counts, COMMON = file["batch"], file["counts"], {COMMON}
    model, times = WeakUNet(rng=np.random.default_rng(0)), []
    for _ in range(6):
        ranks.any(False)  # wait for one another
        started = time.perf_counter()
        take_part(ranks, model, batch, counts, ranks.part(len(batch)))
        times.append(time.perf_counter() - started)
    print(statistics.median(times[1:]))
"""


def seconds_by_mpi(processes, folder):
    """Median time of a step of `processes` ranks; None where they cannot be started."""
    np.savez(Path(folder) / "batch.npz", batch=batch, counts=counts)
    command = ["mpirun", "-n", str(processes), sys.executable, "-c", WORKER]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    with contextlib.suppress(ValueError):
        return float(ran.stdout)
    print(f"mpirun could not start {processes}:", *ran.stderr.split()[:12], "...")
    return None


numbers = [n for n in (1, 2, 4) if n <= cores()]  # 4 scans: parts of equal length
by_threads = {n: seconds_per_step(n) for n in numbers}
by_processes = {}
if shutil.which("mpirun") and importlib.util.find_spec("mpi4py"):
    with tempfile.TemporaryDirectory() as folder:
        measured = {n: seconds_by_mpi(n, folder) for n in numbers[1:]}
    by_processes = {1: step} | {n: seconds for n, seconds in measured.items() if seconds}
else:
    print("MPI is not installed: the picture shows threads only")

# %% [markdown]
# ## The picture
#
# Left: bytes, on a log scale. Middle: on paper, the time for receiving gradients over the time for
# computing, if each rank takes one scan; at the dotted line they are equal. Right: batches per
# second, as measured. Where they stay below the ideal, the cores share their memory, or are busy
# with something else.

# %%
figure, panels = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
for k, (name, each) in enumerate(sizes.items()):
    panels[0].plot(each.keys(), each.values(), label=name, **line_style(k, linestyle="none"))
panels[0].set(yscale="log", ylabel="bytes", title="only the gradient is sent", xlim=(-0.4, 2.4))
panels[0].grid(axis="y", alpha=0.3)
panels[0].legend(frameon=False, loc="upper left", title="network")

ranks, small = np.arange(2, 1001), sizes["default"]["gradient"]
slow, fast = CABLES.values()
lines = {
    "537 million weights, 100 Gbit/s": (ranks - 1) * 4 * 537e6 / fast,
    "this network, 1 Gbit/s": (ranks - 1) * small / slow,
    "this network, 1 Gbit/s, in a ring": 2 * (ranks - 1) / ranks * small / slow,
}
for k, (name, seconds) in enumerate(lines.items()):
    panels[1].plot(ranks, seconds / (step / 4), label=name, **line_style(k, marker=""))
panels[1].axhline(1, color="black", linestyle=":", linewidth=1)
panels[1].set(xscale="log", yscale="log", xlabel="ranks", ylabel="receiving / computing")
panels[1].set_title(f"on paper: {1e3 * step / 4:.0f} ms per scan, one scan per rank")
panels[1].set_ylim(top=1e5)
panels[1].legend(frameon=False, loc="upper left")

measured = {"processes (MPI), 1 thread each": by_processes, "threads of one process": by_threads}
for k, (name, seconds) in enumerate(measured.items()):
    per_second = [1 / s for s in seconds.values()]
    panels[2].plot(seconds.keys(), per_second, label=name, **line_style(k))
panels[2].plot(numbers, [n / step for n in numbers], ":", color="black", label="ideal")
panels[2].set(xlabel="processes, or threads", ylabel="batches of 4 per second", xticks=numbers)
panels[2].set_title(f"as measured on this computer ({cores()} cores)")
panels[2].set_ylim(0)
panels[2].legend(frameon=False, loc="lower right")

most = max(by_processes or by_threads)
faster = step / (by_processes or by_threads)[most]
print(f"{most} {'processes' if by_processes else 'threads'}: {faster:.2f} times as fast as one")
print(f"each sends {small:,} bytes of gradients per step")
lesson.save(figure, "15_several_processes")

# %% [markdown]
# **Try.** Train a network in two processes, then in one, and compare the logs:
# `mpirun -n 2 python -m weakunet.train --out runs/two`, and without `mpirun` into `runs/one`. The
# last digits drift apart: why must they, and why do two runs of `mpirun -n 2` never differ? Stop
# one with Ctrl-C and resume it with one process. Then do exercise set `15_several_processes`. How a
# cluster works on 100,000 scans, with no messages at all, is in [cluster.md](cluster.md).

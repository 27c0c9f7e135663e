"""The training loop (paper, section 3): batches of transformed scans, Adadelta, validation.

On a GPU the host only queues work, all on one stream, and waits for results when an epoch ends:
nothing in a step is read back, and what a step needs is on the GPU when the epoch begins (volumes
that do not fit there are sent without waiting). So the host is ahead with the next batch while the
GPU computes; a second thread or stream would gain nothing. For small batches even queueing takes
longer than computing: there a step's kernels are started together, as one CUDA graph.
"""

import functools
import time

import numpy as np

from weakunet.gpu import backend
from weakunet.training.augment import draw_transform, warp
from weakunet.training.batches import (
    as_batch,
    common_shape,
    common_spacing,
    pad_together,
    place_slices,
    slabs_of,
    slabs_of_batch,
)
from weakunet.training.run import TRANSFORM, warn_if_nothing_learned
from weakunet.util.cli import progress

SMALL = 2**19  # voxels: a GPU computes smaller batches faster than the host queues their kernels
# Weight of the error that a batch's scans have in common (see loss.py): all weights change it, and
# it drowns what tells scans apart. Not with the maximum: a voxel in the middle of the scan would
# add up all lesions in its reach, so that the map counts well and its maximum marks none.
COMMON = 0.1
# An error counts as at most so many standard deviations of the training counts. A jump comes from
# one scan whose count is far off, say because a map that was 0 everywhere has come alive: its
# gradient is as large as its error, Adadelta's step follows before its averages do, the next error
# is larger, and so on. With bounded errors the gradient cannot run away; near the truth nothing
# changes. `train_worst` in log.csv is the largest error of an epoch's scans, not bounded.
BOUND_SD = 3.0


def learning_rate(settings, epoch):
    """lr, times 0.3 from 70 % and 0.1 from 90 % of the epochs on (ours)."""
    share = epoch / settings.epochs
    return settings.lr * (1.0 if share < 0.7 else 0.3 if share < 0.9 else 0.1)


def train_epoch(run, volumes, counts, stop):
    """Train on every scan once, from run.batch on; True if `stop()` ended it early.

    volumes (n, D, H, W) on the model's device or the host; counts (n,) on the host.
    """
    settings, model = run.settings, run.model
    order = run.order(len(counts))
    if run.epoch == run.batch == 0:
        run.set_last_layer(counts, all_of_it=not run.learned_elsewhere)
    run.optimizer.lr = learning_rate(settings, run.epoch)
    # moved to the GPU once, not in every step
    places = backend.to_device(order, "cuda" if backend.is_cuda(volumes) else "cpu")
    matrices = backend.to_device(_transforms(run, order, volumes.shape[1:]), model.device)
    targets = backend.to_device(counts[order], model.device)
    done = min(run.batch * settings.batch, len(counts))
    before, run.predicted = run.predicted[:done], targets * 0
    run.predicted[: len(before)] = backend.to_device(before, model.device)
    starts = range(done, len(counts), settings.batch)
    if not settings.gaussian_head:
        run.common = 1.0 if settings.pool == "max" else COMMON
        run.bound = BOUND_SD * float(counts.std())
    step = functools.partial(train_step, run)
    if run.one_graph and backend.is_cuda(volumes) and volumes[0].size * settings.batch < SMALL:
        step = backend.as_graph(step)  # a new one per epoch: it holds the learning rate
    for start in progress(starts, f"epoch {run.epoch + 1}/{settings.epochs}", quiet=True):
        batch = slice(start, start + settings.batch)
        scans = as_batch(model, volumes[places[batch]])[:, 0]
        run.predicted[batch] = step(scans, targets[batch], places[batch], matrices[batch])
        run.batch += 1
        if stop():
            return True
    return False


def train_step(run, scans, targets, places, matrices):
    """Transform a batch of scans (N, D, H, W), learn from it, update the weights (see Run.learn).

    Returns what was predicted for each scan before the update (N,).
    """
    moved = warp(scans, matrices)[:, None]  # (N, D, H, W) -> (N, 1, D, H, W)
    predicted = run.learn(moved, targets, places, matrices)
    run.optimizer.step(run.model.grads)
    return predicted


def _transforms(run, order, shape):
    """(n, 3, 4): this epoch's random transform of each scan, in the order of training."""
    settings = run.settings
    # the last epochs, of a lower learning rate, see scans as sharp as those to be predicted on
    rotate_deg = settings.rotate_deg if run.optimizer.lr == settings.lr else 0
    amounts = (settings.flips, settings.shift_vox, rotate_deg, settings.scale)
    how = *amounts, run.in_plane, run.model.spacing_mm
    rngs = (np.random.default_rng([settings.seed, TRANSFORM, run.epoch, i]) for i in order)
    return np.stack([draw_transform(rng, shape, *how) for rng in rngs])


def train(run, scans, stop=lambda: False):
    """Train until the last epoch; True if `stop()` ended it early, with all saved to resume.

    scans: dict split -> list of LoadedScan, `train` and `val` of them used. Writes last.npz,
    best.npz and log.csv into run.out. Raises InputError when training diverges.
    """
    model, settings = run.model, run.settings
    model.spacing_mm = common_spacing(scans["train"] + scans["val"])
    flat = all(len(scan.volume.array) == 1 for scan in scans["train"])
    run.in_plane = flat or scans["train"][0].slice_index is not None
    scans = {split: place_slices(model, scans[split]) for split in ("train", "val")}
    arrays = {split: [scan.volume.array for scan in scans[split]] for split in scans}
    shape = common_shape(arrays["train"] + arrays["val"], model.multiple)
    volumes = backend.cache(pad_together(arrays["train"], shape), model.device)
    run.slabs = slabs_of(scans["train"], volumes)
    counts = {split: np.array([scan.count for scan in scans[split]], np.float32) for split in scans}
    model.shape = shape
    model.flips = settings.flips.replace("z", "") if run.in_plane else settings.flips
    run.prepare(scans, volumes)
    if run.epoch == run.batch == 0:
        if model.global_pool.blocks is None:
            each = [slice(i, i + 1) for i in range(len(volumes))]
            slabs = (slabs_of_batch(model, run.slabs, i) for i in each)
            model.measure_blocks((as_batch(model, volumes[i]) for i in each), slabs)
        run.save()
    while run.epoch < settings.epochs and not run.stale():
        started = time.monotonic()
        if train_epoch(run, volumes, counts["train"], stop):
            run.save()
            return True
        run.set_last_layer(counts["train"])
        predicted = run.validate()
        run.finish_epoch(counts, predicted, time.monotonic() - started)
    run.set_last_layer(counts["train"])
    warn_if_nothing_learned(settings, run.validate(), counts)
    return False

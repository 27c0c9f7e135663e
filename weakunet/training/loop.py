"""The training loop, its state and how it resumes (paper, section 3).

Every random number comes from a generator seeded by (seed, purpose, epoch, scan), none from one
that runs through the whole training, so the state of a run is its weights, the optimizer's
averages, and how far it is. A run that was killed goes on from its last epoch, one that was
interrupted from its last batch, with the same bits as if it had not stopped.

On a GPU the host only queues work, all on one stream, and waits for results when an epoch ends:
nothing in a step is read back, and what a step needs is on the GPU when the epoch begins (volumes
that do not fit there are sent without waiting). So the host is ahead with the next batch while the
GPU computes; a second thread or stream would gain nothing. For small batches even queueing takes
longer than computing: there a step's kernels are started together, as one CUDA graph.
"""

import dataclasses
import functools
import time

import numpy as np

from weakunet.data.slices import front_padding
from weakunet.data.volumes import Volume, require_spacing
from weakunet.evaluation.metrics import correlation
from weakunet.gpu import backend
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.training.augment import draw_transform, warp
from weakunet.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from weakunet.util.cli import InputError, one_line, progress, write_csv

COLUMNS = ("epoch", "lr", "train_mse", "val_mse", "val_r", "train_worst", "seconds")
WEIGHTS, ORDER, TRANSFORM = range(3)  # purposes of random numbers
START_ON = 32  # training scans that the last layer's first weights are measured on
SMALL = 2**19  # voxels: a GPU computes smaller batches faster than the host queues their kernels
# Weight of the error that a batch's scans have in common (see loss.py). The level of the count is
# what all weights change, so its error drowns the differences between scans, which say where the
# lesions are: weighed down, learning starts some epochs earlier.
COMMON = 0.1
# An error counts as at most so many standard deviations of the training counts. A jump comes from
# one scan whose count is far off, say because a map that was 0 everywhere has come alive: its
# gradient is as large as its error, Adadelta's step follows before its averages do, the next error
# is larger, and so on. With bounded errors the gradient cannot run away; near the truth nothing
# changes. `train_worst` in log.csv is the largest error of an epoch's scans, not bounded.
BOUND_SD = 3.0


class Run:
    """All that a training run knows; OUT/last.npz is this, saved after every epoch.

    What is learned is decided by `prepare`, `learn`, `validate` and `finish_epoch`; compare's
    VoxelwiseRun overrides them.
    """

    columns = COLUMNS  # of log.csv
    one_graph = True  # `learn` only queues work on the GPU, so that a CUDA graph can replay it

    def __init__(self, model, settings, out):
        self.model, self.settings, self.out = model, settings, out
        self.optimizer = Adadelta(model.params, settings.lr, settings.rho, settings.eps)
        self.in_plane = False  # True: one slice was counted or is all there is, and it stays there
        # split -> (n, 1, D, 1, 1) bool, the slice that was counted; None: all of the ROI
        self.slabs = {"train": None, "val": None}
        self.learned_elsewhere = False  # True: its first weights can tell lesions
        self.common, self.bound = 1.0, np.inf  # of the loss: the paper's
        self.epoch = self.batch = 0
        self.history = []  # a row of COLUMNS per finished epoch
        # counts of this epoch's training scans, in the order of training; 0 for those to come
        self.predicted = np.zeros(0, np.float32)

    def best_epoch(self):
        """Index of the epoch with the lowest validation error; None before the first."""
        errors = [row[COLUMNS.index("val_mse")] for row in self.history]
        return int(np.argmin(errors)) if errors else None

    def stale(self):
        """True if the last `patience` epochs brought no better one."""
        patience = self.settings.patience
        return (
            patience > 0 and bool(self.history) and self.epoch - 1 - self.best_epoch() >= patience
        )

    def order(self, n):
        """The order in which this epoch takes the n training scans."""
        return np.random.default_rng([self.settings.seed, ORDER, self.epoch]).permutation(n)

    def save(self):
        """Write last.npz."""
        state = {"epoch": self.epoch, "batch": self.batch, "predicted": self.predicted}
        state["history"] = np.array(self.history, np.float64).reshape(-1, len(COLUMNS))
        averages = {f"optimizer.{name}": value for name, value in self.optimizer.state.items()}
        save_checkpoint(self.out / "last.npz", self.model, state | averages)

    def started(self):
        """True if `out` holds more than settings.json: then last.npz must be there."""
        return any((self.out / name).exists() for name in ("last.npz", "best.npz", "log.csv"))

    def load(self):
        """Take up the state of last.npz.  Raises InputError when it is damaged or incomplete."""
        path, device = self.out / "last.npz", self.model.device
        model, state = load_checkpoint(path)
        try:
            if model.settings != self.model.settings:
                raise ValueError("it is of another network than settings.json")
            self.model.load(model.params)
            self.model.global_pool.blocks = model.global_pool.blocks
            self.epoch, self.batch = state["epoch"].item(), state["batch"].item()
            history, predicted = state["history"], state["predicted"]
            if not (type(self.epoch) is type(self.batch) is int and self.batch >= 0):
                raise ValueError("its epoch is no number")
            if history.shape != (self.epoch, len(COLUMNS)) or predicted.ndim != 1:
                raise ValueError("its epochs and its history differ")
            rows = history.astype(float, casting="safe").tolist()
            self.history = [(int(epoch), *row) for epoch, *row in rows]
            self.predicted = backend.to_device(predicted.astype("f4", casting="safe"), device)
            for name, value in self.optimizer.state.items():
                average = state[f"optimizer.{name}"]
                same = (average.shape, average.dtype) == (value.shape, value.dtype)
                if not same or not np.isfinite(average).all() or (average < 0).any():
                    raise ValueError(f"optimizer.{name} is damaged")
                value[...] = backend.to_device(average, device)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be resumed ({one_line(error)}); train into another folder"
            ) from None

    def start_from(self, path):
        """Take the weights of the checkpoint `path`, if any, of a network that learned elsewhere.

        Raises InputError if it is of another kind.
        """
        if path is None:
            return
        trained = load_model(path)
        if trained.settings != self.model.settings:
            raise InputError(
                f"{path}: holds another network ({trained.settings}); "
                f"give the options that make it the same ({self.model.settings})"
            )
        self.model.load(trained.params)
        self.model.global_pool.blocks = trained.global_pool.blocks  # w belongs to it
        self.learned_elsewhere = True

    def prepare(self, scans, volumes):
        """Get ready to train on `volumes` (split -> (n, D, H, W)), which are the scans, padded."""

    def learn(self, scans, targets, places, matrices):
        """The gradients of one batch; returns what is predicted for each scan (N,).

        scans (N, 1, D, H, W), transformed; targets (N,), true counts; places (N,), indices of the
        scans; matrices (N, 3, 4), their transforms.
        """
        predicted = self.forward(scans, places)
        self.model.backward(mse_backward(predicted, targets, self.common, self.bound))
        return predicted

    def forward(self, scans, places):
        """Predicted counts (N,) of training scans (N, 1, D, H, W); backward may follow."""
        # scans whose slice was counted move within it only, so the slabs stay
        return self.model.forward(scans, _slabs(self.model, self.slabs["train"], places))

    def validate(self, volumes):
        """Predicted counts (n,), on the host, of the validation scans."""
        return predict_counts(self.model, volumes, self.settings.batch, self.slabs["val"])

    def finish_epoch(self, counts, val_predicted, seconds):
        """Log the epoch just trained; keep its weights if they are the best; save."""
        order = self.order(len(counts["train"]))
        train_error = backend.to_host(self.predicted) - counts["train"][order]
        val_error = val_predicted - counts["val"]
        r = correlation(counts["val"], val_predicted)
        errors = (train_error**2).mean(), (val_error**2).mean(), r, abs(train_error).max()
        row = self.keep_epoch(*errors, seconds)
        print(
            f"epoch {self.epoch}/{self.settings.epochs}  squared error of the count: training "
            f"{row[2]:.2f}, validation {row[3]:.2f} (the mean count's: {counts['val'].var():.2f})  "
            f"r {row[4]:.2f}  {seconds:.1f} s",
            flush=True,
        )

    def keep_epoch(self, train_error, val_error, r, train_worst, seconds):
        """Add the epoch's row of `columns` to the history and save; returns the row."""
        if not np.isfinite(val_error):
            raise InputError(
                f"{self.out}: training diverged in epoch {self.epoch + 1}, its outputs are no "
                "numbers any more; train into another folder with a lower --lr or --eps"
            )
        errors = float(train_error), float(val_error), r, float(train_worst)
        row = (self.epoch + 1, self.optimizer.lr, *errors, round(seconds, 2))
        self.history.append(row)
        self.epoch, self.batch = self.epoch + 1, 0
        self.save_epoch()
        return row

    def save_epoch(self):
        """Write best.npz if the last epoch is the best, then last.npz and log.csv."""
        if self.best_epoch() == len(self.history) - 1:
            save_checkpoint(self.out / "best.npz", self.model)
        self.save()
        write_csv(self.out / "log.csv", self.columns, self.history)


def common_spacing(scans):
    """The voxel size of the first scan; InputError where another scan's is different."""
    for scan in scans:
        require_spacing(scan.volume, scans[0].volume.spacing_mm, scan.subject)
    return scans[0].volume.spacing_mm


def common_shape(volumes, multiple):
    """The smallest (D, H, W) that holds each of the arrays and divides by `multiple`."""
    largest = np.max([volume.shape for volume in volumes], axis=0)
    return tuple(int(size) for size in -(-largest // multiple) * multiple)


def pad_together(volumes, shape):
    """Stack arrays (D, H, W) of any sizes as (n, *shape), zeros after each."""
    stacked = np.zeros((len(volumes), *shape), np.float32)
    for place, volume in zip(stacked, volumes, strict=True):
        place[tuple(slice(0, size) for size in volume.shape)] = volume
    return stacked


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
    if run.batch == 0 and run.epoch in (0, settings.restart):
        start_last_layer(run, volumes, counts)
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
        run.common, run.bound = COMMON, BOUND_SD * float(counts.std())
    step = functools.partial(train_step, run)
    if run.one_graph and backend.is_cuda(volumes) and volumes[0].size * settings.batch < SMALL:
        step = backend.as_graph(step)  # a new one per epoch: it holds the learning rate
    for start in progress(starts, f"epoch {run.epoch + 1}/{settings.epochs}", quiet=True):
        batch = slice(start, start + settings.batch)
        scans = _batch(model, volumes[places[batch]])[:, 0]
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


def start_last_layer(run, volumes, counts):
    """Give the last layer its first weights and Adadelta averages of 0 (ours; see model.start).

    Once more after `restart` epochs: by then the other layers have found features that follow the
    lesions, but the last layer may weigh them so that few maps, or peaks beside the lesions, do the
    counting, and Adadelta's steps have shrunk. From equal shares, every map has its say again.
    """
    if run.settings.gaussian_head:
        return  # the paper's: drawn once, and never again
    first = [slice(i, i + 1) for i in range(min(START_ON, len(counts)))]
    scans = (_batch(run.model, volumes[i]) for i in first)
    slabs = (_slabs(run.model, run.slabs["train"], i) for i in first)
    again = run.learned_elsewhere and run.epoch == 0  # w is right, its level may not be
    start = run.model.set_level if again else run.model.start
    start(scans, float(counts.mean()), slabs)
    run.optimizer.reset()


def _transforms(run, order, shape):
    """(n, 3, 4): this epoch's random transform of each scan, in the order of training."""
    settings = run.settings
    amounts = (settings.flips, settings.shift_vox, settings.rotate_deg, settings.scale)
    rngs = (np.random.default_rng([settings.seed, TRANSFORM, run.epoch, i]) for i in order)
    return np.stack([draw_transform(rng, shape, *amounts, run.in_plane) for rng in rngs])


def predict_counts(model, volumes, batch, slabs=None):
    """Predicted counts (n,), on the host, of volumes (n, D, H, W); slabs as Run.slabs."""
    chosen = [slice(i, i + batch) for i in range(0, len(volumes), batch)]
    counts = [
        model.predict(_batch(model, volumes[i]), counted=_slabs(model, slabs, i))[0] for i in chosen
    ]
    return np.concatenate([backend.to_host(count) for count in counts])


def place_slices(model, scans):
    """The scans, each with the slice that was counted, or is all there is, where predict puts it.

    Training moves a scan within its slices only, so along z the grids would never vary.
    """
    placed = []
    for scan in scans:
        array, k = scan.volume.array, scan.slice_index
        if model.settings["region"] and (k is not None or len(array) == 1):
            front = int(front_padding(array, model.period, k)[0])
            volume = Volume(np.pad(array, ((front, 0), (0, 0), (0, 0))), scan.volume.affine)
            centres = None if scan.centres_zyx is None else scan.centres_zyx + (front, 0, 0)
            k = None if k is None else k + front
            scan = dataclasses.replace(scan, volume=volume, centres_zyx=centres, slice_index=k)
        placed.append(scan)
    return placed


def slabs_of(scans, volumes):
    """(n, 1, D, 1, 1) bool, the slice of each scan that was counted, held where `volumes` are."""
    if scans[0].slice_index is None:
        return None
    slices = np.array([scan.slice_index for scan in scans])
    counted = (np.arange(volumes.shape[1]) == slices[:, None])[:, None, :, None, None]
    return backend.to_device(counted, "cuda" if backend.is_cuda(volumes) else "cpu")


def _slabs(model, slabs, chosen):
    """Where the chosen scans were counted, on the model's device; None: everywhere."""
    return None if slabs is None else backend.to_device(slabs[chosen], model.device)


def _batch(model, volumes):
    """Volumes (n, D, H, W), cached anywhere in any precision, as (n, 1, D, H, W) for the model."""
    return backend.to_device(volumes, model.device).astype(np.float32, copy=False)[:, None]


def train(run, scans, stop=lambda: False):
    """Train until the last epoch; True if `stop()` ended it early, with all saved to resume.

    scans: dict split -> list of LoadedScan, `train` and `val` of them used. Writes last.npz,
    best.npz and log.csv into run.out. Raises InputError when training diverges.
    """
    model, settings = run.model, run.settings
    model.spacing_mm = common_spacing(scans["train"] + scans["val"])
    volumes, counts = {}, {}
    flat = all(len(scan.volume.array) == 1 for scan in scans["train"])
    run.in_plane = flat or scans["train"][0].slice_index is not None
    scans = {split: place_slices(model, scans[split]) for split in ("train", "val")}
    arrays = {split: [scan.volume.array for scan in scans[split]] for split in scans}
    shape = common_shape(arrays["train"] + arrays["val"], model.multiple)
    for split in arrays:
        padded = pad_together(arrays[split], shape)
        volumes[split] = backend.cache(padded, model.device)
        counts[split] = np.array([scan.count for scan in scans[split]], np.float32)
        run.slabs[split] = slabs_of(scans[split], volumes[split])
    model.shape = shape
    model.flips = settings.flips.replace("z", "") if run.in_plane else settings.flips
    run.prepare(scans, volumes)
    if run.epoch == run.batch == 0:
        if model.global_pool.blocks is None:
            each = [slice(i, i + 1) for i in range(len(volumes["train"]))]
            slabs = (_slabs(model, run.slabs["train"], i) for i in each)
            model.measure_blocks((_batch(model, volumes["train"][i]) for i in each), slabs)
        run.save()
    while run.epoch < settings.epochs and not run.stale():
        started = time.monotonic()
        if train_epoch(run, volumes["train"], counts["train"], stop):
            run.save()
            return True
        predicted = run.validate(volumes["val"])
        run.finish_epoch(counts, predicted, time.monotonic() - started)
    warn_if_nothing_learned(settings, run.validate(volumes["val"]), counts)
    return False


def warn_if_nothing_learned(settings, predicted, counts):
    """Say so in one line when the validation counts were not learned, with a remedy not yet in use.

    predicted: of the validation scans; counts: dict split -> true counts, `train` and `val`.
    """
    true = counts["val"]
    if np.ptp(counts["train"]) == 0:
        print(
            f"warning: nothing to learn, every training scan has the count {counts['train'][0]:g}; "
            "check the table's column count",
            flush=True,
        )
        return
    if np.ptp(true) == 0:
        return  # one scan, or equal counts: they cannot tell
    r2 = 1 - ((predicted - true) ** 2).mean() / true.var()
    if r2 < 0.1 or predicted.std() < 0.1 * true.std():
        print(
            f"warning: the counts were not learned (R2 {r2:.2f} on the validation scans, the "
            f"predictions' spread is {predicted.std() / true.std():.0%} of the counts'), so the "
            f"heatmaps mean nothing; try {_remedy(settings)}",
            flush=True,
        )


def _remedy(settings):
    if settings.gaussian_head:
        return "to leave out --gaussian-head"
    if settings.pool != "lmax":
        return "--pool lmax"
    if settings.start_from == "none":
        return "--start-from auto"
    return f"--epochs {2 * settings.epochs}, or more scans"

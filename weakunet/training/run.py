"""The state of a training run: how far it is, what it logged, how it is saved and resumed.

Every random number comes from a generator seeded by (seed, purpose, epoch, scan), none from one
that runs through the whole training. So the state is the weights, the optimizer's averages, and how
far the run is. A run that was killed resumes from its last epoch, one that was interrupted from its
last batch, with the same bits as if it had not stopped.
"""

import numpy as np

from weakunet.detection.predict_scan import to_network
from weakunet.evaluation.metrics import correlation
from weakunet.gpu import backend
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.training.batches import slabs_of_batch
from weakunet.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from weakunet.util.cli import InputError, one_line, write_csv

WEIGHTS, ORDER, TRANSFORM = range(3)  # purposes of random numbers
FIT_ON = 64  # training scans on which the last layer is fitted

COLUMNS = ("epoch", "lr", "train_mse", "val_mse", "val_r", "train_worst", "seconds")


class Run:
    """All that a training run knows; OUT/last.npz is this, saved after every epoch.

    What is learned is decided by `prepare`, `learn`, `validate` and `finish_epoch`; compare's
    VoxelwiseRun overrides them.
    """

    columns = COLUMNS  # of log.csv
    one_graph = True  # `learn` only queues work on the GPU, so that a CUDA graph can replay it

    def __init__(self, model, settings, out):
        self.model, self.settings, self.out = model, settings, out
        learned = dict(model.params)
        if settings.pool == "lmax" and not settings.gaussian_head:
            # b stays 0 (ours). Else it takes away what the anatomy that all scans share adds to
            # every count, and the map may shine there: its highest peaks are then no lesions.
            del learned["linear.b"]
        self.optimizer = Adadelta(learned, settings.lr, settings.rho, settings.eps)
        self.in_plane = False  # True: one slice was counted or is all there is, and it stays there
        # of the training scans, (n, 1, D, 1, 1) bool, the slice counted; None: all of the ROI
        self.slabs = None
        self.learned_elsewhere = False  # True: its first weights can tell lesions
        self.learned = {}  # the last layer's arrays before they were fitted to validate
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
        b0 = {} if "linear.b" in self.optimizer.params else {"linear.b": np.zeros(1)}
        self.model.load(trained.params | b0)
        self.model.global_pool.blocks = trained.global_pool.blocks  # w belongs to it
        self.learned_elsewhere = True

    def prepare(self, scans, volumes):
        """Get ready to train on `volumes` (n, D, H, W), the training scans padded, and to validate.

        What is measured without learning is predicted as `predict` would, one scan at a time: where
        a scan lies on the network's grids changes its count a little.
        """
        self.fit_on, self.val = scans["train"][:FIT_ON], scans["val"]

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
        return self.model.forward(scans, slabs_of_batch(self.model, self.slabs, places))

    def set_last_layer(self, counts, all_of_it=False):
        """Fit the last layer to the counts of the first training scans (ours).

        Before the first epoch `all_of_it` gets its first weights (model.start), unless weights that
        can tell lesions are there already: then only their scale is fitted. To validate, and in
        best.npz, scale and b are: with the common error weighed down (see loop.py) the level
        wanders by about one count, and validation would judge where it happens to be instead of
        what was learned; and a map that is nowhere quite 0 adds up to half a lesion in a scan
        without one. Training goes on without that, for its error says what else to unlearn.
        """
        if self.settings.gaussian_head:
            return  # the paper's: drawn once, then left to the optimizer
        (scans, slabs), first = zip(*self._placed(self.fit_on), strict=True), counts[:FIT_ON]
        self.learned = {name: value.copy() for name, value in self.model.linear.params.items()}
        if all_of_it:
            self.model.start(scans, float(first.mean()), slabs)
        else:
            self.model.fit(scans, first, slabs, level=self.epoch + self.batch > 0)

    def validate(self):
        """Predicted counts (n,), on the host, of the validation scans."""
        counts = [self.model.predict(scan, slab)[0] for scan, slab in self._placed(self.val)]
        return np.concatenate([backend.to_host(count) for count in counts])

    def _placed(self, scans):
        """Each scan as the network takes it, with its slab: moved there when its turn comes."""
        return (to_network(self.model, scan.volume, scan.slice_index) for scan in scans)

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
        self.as_learned()
        self.save()
        write_csv(self.out / "log.csv", self.columns, self.history)

    def as_learned(self):
        """Give the last layer back what it had before it was fitted to validate."""
        for name, value in self.learned.items():
            self.model.linear.params[name][...] = value


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

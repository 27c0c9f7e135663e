"""What learning from counts depends on: python -m weakunet.study

    scans    how many training scans there are, at the same number of steps
    noise    the count off by one in a share of the training scans
    pooling  the global pooling: maximum, mean, mean of local maxima with blocks of several sizes
    epochs   one training watched: error of the count and localisation after every epoch

Every training is on the small phantom from counts alone and is judged on its VALIDATION scans, by
the error of the count, and by the lesions found when the map is cut at the TRUE count, which tells
errors of the map from errors of the count. Writes study_NAME.csv and study_NAME.png into --out;
networks that are there are not trained again.
"""

import argparse
import contextlib
import dataclasses
import functools
from pathlib import Path

import numpy as np

from weakunet import figures_counts
from weakunet.checkpoint import load_model, save_checkpoint
from weakunet.cli import InputError, command, progress, write_csv, write_json
from weakunet.compare import COHORTS, FIRST_SEED
from weakunet.compare_seed import DONE, network_maps
from weakunet.compare_stats import rates
from weakunet.detect import detect_lesions
from weakunet.layers.threads import set_threads
from weakunet.metrics import count_hits, count_metrics
from weakunet.model import WeakUNet
from weakunet.parallel import cores, map_processes
from weakunet.phantom import SPACING_MM, simulate_cohort
from weakunet.predict import predict_scan
from weakunet.train import Settings
from weakunet.training import WEIGHTS, Run, train

STUDIES = ("scans", "noise", "pooling", "epochs")
COLUMNS = "study,series,x,seed,val_r2,val_r,val_mse,tpr_true_count,fp_true_count".split(",")
SCANS = (50, 100, 200, 400, 800)
NOISE = (0.0, 0.25, 0.5)
BLOCKS = (2, 4, 8)
X_LABEL = {
    "scans": "training scans (the same number of steps)",
    "noise": "share of training counts off by one",
    "pooling": "edge of the blocks, mm in the slice",
    "epochs": "epoch",
}
TITLE = {
    "scans": "How many training scans?",
    "noise": "How wrong may the counts be?",
    "pooling": "Which global pooling?",
    "epochs": "One training, watched",
}
VAL = 100


@dataclasses.dataclass(frozen=True)
class Variant:
    """One training of a study."""

    study: str
    series: str
    x: float
    settings: Settings
    n_train: int
    noise: float
    out: Path

    @property
    def folder(self):
        s = self.settings
        name = f"{s.pool}{s.block}-{self.n_train}scans-noise{self.noise:g}-seed{s.seed}"
        return self.out / "networks" / name


def variants(study, seeds, out):
    """The trainings of a study; what two studies share lies in the same folder."""
    made = []
    n = COHORTS["quick"].n["train"]

    def add(series, x, seed, n_train=n, noise=0.0, **changes):
        epochs = 16 * n // n_train
        settings = Settings(seed=seed, epochs=epochs, **changes)
        made.append(Variant(study, series, x, settings, n_train, noise, out))

    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        if study == "scans":
            for n_train in SCANS:
                add("mean of local maxima", n_train, seed, n_train)
        elif study == "noise":
            for share in NOISE:
                add("mean of local maxima", share, seed, noise=share)
        elif study == "pooling":
            for block in BLOCKS:
                edge_mm = block * SPACING_MM[2]
                add("mean of local maxima", edge_mm, seed, pool="lmax", block=block)
            add("global maximum (the paper's)", 16 * SPACING_MM[2], seed, pool="max")
            add("global mean", SPACING_MM[2], seed, pool="mean")
        else:
            add("mean of local maxima", 0, seed)
    return made


def disturb(counts, share, seed):
    """Counts of which a `share`, drawn at random, are one too high or (never below 0) too low."""
    rng = np.random.default_rng([seed, 99])
    chosen = rng.random(len(counts)) < share
    step = np.where(rng.random(len(counts)) < 0.5, 1, -1)
    step = np.where(np.asarray(counts) == 0, 1, step)
    return np.where(chosen, counts + step, counts)


@functools.lru_cache(maxsize=1)
def _scans(seed):
    return simulate_cohort("tiny", {"train": max(SCANS), "val": VAL}, seed)


class WatchedRun(Run):
    """A Run that also keeps the weights of every epoch."""

    def finish_epoch(self, *args):
        super().finish_epoch(*args)
        save_checkpoint(self.out / f"epoch{self.epoch:02d}.npz", self.model)


def run_variant(variant):
    """Train unless it is done; rows of COLUMNS (of every epoch, for the study `epochs`)."""
    set_threads(1)
    s, folder = variant.settings, variant.folder
    cohort = _scans(s.seed)
    watched = variant.study == "epochs"
    folder = folder.with_name(folder.name + "-watched") if watched else folder
    if not (folder / DONE).exists():
        scans = cohort["train"][: variant.n_train]
        counts = disturb(np.array([scan.count for scan in scans]), variant.noise, s.seed)
        pairs = zip(scans, counts, strict=True)
        noisy = [dataclasses.replace(scan, count=int(count)) for scan, count in pairs]
        model = WeakUNet(
            s.channels, s.convs_per_level, s.pool, s.block,
            rng=np.random.default_rng([s.seed, WEIGHTS]),
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            with contextlib.redirect_stdout(log):
                run = (WatchedRun if watched else Run)(model, s, folder)
                train(run, {"train": noisy, "val": cohort["val"]})
        write_json(folder / DONE, {})
    names = sorted(folder.glob("epoch*.npz")) if watched else [folder / "best.npz"]
    return [_judge(variant, path, cohort["val"]) for path in names]


def _judge(variant, path, scans):
    """A row of COLUMNS: one network on the validation scans."""
    model = load_model(path)
    counts, maps = network_maps(scans, predict_scan, model)
    figures = count_metrics([scan.count for scan in scans], counts)
    hits = [
        count_hits(detect_lesions(m, scan.count).centres_zyx, scan.centres_zyx)
        for m, scan in zip(maps, scans, strict=True)
    ]
    tpr, fp, _ = rates(np.array(hits))
    x = int(path.stem[5:]) if variant.study == "epochs" else variant.x
    numbers = (figures["count_r2"], figures["count_r"], figures["count_mse"], tpr, fp)
    seed = variant.settings.seed
    return (variant.study, variant.series, x, seed, *(round(float(v), 4) for v in numbers))


def draw(out, study, rows):
    """Error of the count and localisation at the true count, mean and range over seeds."""
    panels = []
    for label, column in (("R2 of the count", 4), ("TPR at the true count", 7)):
        lines = {}
        for series in dict.fromkeys(row[1] for row in rows):
            own = [row for row in rows if row[1] == series]
            x = sorted({row[2] for row in own})
            values = [[row[column] for row in own if row[2] == value] for value in x]
            mean, low, high = ([f(v) for v in values] for f in (np.mean, min, max))
            lines[series] = (x, mean, low, high)
        panels.append((f"{label} (validation)", lines))
    path = out / f"study_{study}.png"
    figures_counts.study_lines(path, TITLE[study], X_LABEL[study], panels, log_x=study == "scans")


@command
def main(argv=None):
    """Study: see the module's first lines."""
    about = __doc__.splitlines()[0].split(":")[0]
    parser = argparse.ArgumentParser("python -m weakunet.study", description=about)
    parser.add_argument("study", nargs="*", default=[], metavar="|".join(STUDIES))
    parser.add_argument("--seeds", type=int, default=2, help="trainings of every variant")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--jobs", type=int, help="processes (default: one a core)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.study if name not in STUDIES]
    if unknown or args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise InputError(f"{(unknown or ['--seeds and --jobs'])[0]}: choose from {STUDIES}, and at "
                         "least 1 seed and process")  # fmt: skip
    for study in args.study or STUDIES:
        todo = variants(study, args.seeds, args.out)
        found = map_processes(run_variant, todo, args.jobs or cores())
        pairs = zip(progress(todo, f"study {study}"), found, strict=True)
        rows = [row for _, own in pairs for row in own]
        write_csv(args.out / f"study_{study}.csv", COLUMNS, rows)
        draw(args.out, study, rows)
        print(f"written: {args.out / f'study_{study}.png'}", flush=True)


if __name__ == "__main__":
    main()

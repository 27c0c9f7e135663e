"""What learning from counts depends on: python -m weakunet.study

    scans    how many training scans there are, at the same number of steps
    noise    the count off by one in a fraction of the training scans
    pooling  the global pooling: maximum, mean, sum of local maxima with blocks of several sizes
    epochs   one training watched: error of the count and localisation after every epoch

Every training is on the small phantom from counts alone. It is judged on its VALIDATION scans, by
the error of the count, and by the lesions found when the map is thresholded at the TRUE count,
which tells errors of the map from errors of the count. Writes study_NAME.csv and study_NAME.png
into --out; finished networks are kept.
"""

import contextlib
import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np

from weakunet.compare.cohorts import COHORTS, FIRST_SEED
from weakunet.compare.methods import network_maps
from weakunet.data.phantom import SPACING_MM, simulate_cohort
from weakunet.detection.predict_scan import predict_scan
from weakunet.evaluation.evaluator import MAIN, evaluate_maps
from weakunet.evaluation.metrics import rates
from weakunet.figures.counts import study_lines
from weakunet.training.checkpoint import load_model, save_checkpoint
from weakunet.training.loop import train
from weakunet.training.run import Run
from weakunet.training.settings import Settings
from weakunet.training.start import new_network
from weakunet.util import resume
from weakunet.util.cli import InputError, command, new_parser, progress, write_csv
from weakunet.util.processes import cores, map_processes
from weakunet.util.threads import set_threads

STUDIES = {  # title and x axis of the picture
    "scans": ("How many training scans?", "training scans (the same number of steps)"),
    "noise": ("How wrong may the counts be?", "fraction of training counts off by one"),
    "pooling": ("Which global pooling?", "edge of the blocks in the slice, mm"),
    "epochs": ("One training, watched", "epoch"),
}
COLUMNS = "study,series,x,seed,val_r2,val_r,val_mse,tpr_true_count,fp_true_count".split(",")
SCANS = (50, 100, 200, 400, 800)
NOISE = (0.0, 0.25, 0.5)
BLOCKS = (2, 4, 8)
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
        return self.out / "networks" / (name + "-watched" * (self.study == "epochs"))


def variants(study, seeds, out):
    """The trainings of a study; those that two studies share have the same folder."""
    local, mm, all_scans = "sum of local maxima", SPACING_MM[2], COHORTS["quick"].n["train"]
    kinds = {  # (series, x, what is varied)
        "scans": [(local, n, {"n_train": n}) for n in SCANS],
        "noise": [(local, fraction, {"noise": fraction}) for fraction in NOISE],
        "pooling": [
            *[(local, block * mm, {"block": block}) for block in BLOCKS],
            ("global maximum (the paper's)", 16 * mm, {"pool": "max"}),
            ("global mean", mm, {"pool": "mean"}),
        ],
        "epochs": [(local, 0, {})],
    }

    def variant(seed, series, x, n_train=all_scans, noise=0.0, **how):
        settings = Settings(seed=seed, epochs=Settings.epochs * all_scans // n_train, **how)
        return Variant(study, series, x, settings, n_train, noise, out)

    each_seed = range(FIRST_SEED, FIRST_SEED + seeds)
    return [variant(seed, *own, **varied) for seed in each_seed for *own, varied in kinds[study]]


def disturb(counts, fraction, seed):
    """Counts of which a random `fraction` is one too high or (never below 0) one too low."""
    rng = np.random.default_rng([seed, 99])
    chosen = rng.random(len(counts)) < fraction
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
    """Train unless it is there; rows of COLUMNS (of every epoch, for the study `epochs`)."""
    set_threads(1)
    s, folder, watched = variant.settings, variant.folder, variant.study == "epochs"
    cohort = _scans(s.seed)
    how = {"n_train": variant.n_train, "noise": variant.noise, **dataclasses.asdict(s)}
    best = folder / "best.npz"
    if not resume.noted(folder.parent, folder.name, how, [], [best]):
        shutil.rmtree(folder, ignore_errors=True)  # of other settings, or half trained
        scans = cohort["train"][: variant.n_train]
        counts = disturb(np.array([scan.count for scan in scans]), variant.noise, s.seed)
        pairs = zip(scans, counts, strict=True)
        noisy = [dataclasses.replace(scan, count=int(count)) for scan, count in pairs]
        folder.mkdir(parents=True)
        log = open(folder / "log.txt", "w", encoding="utf-8")
        with log, contextlib.redirect_stdout(log):
            run = (WatchedRun if watched else Run)(new_network(s), s, folder)
            train(run, {"train": noisy, "val": cohort["val"]})
        resume.note(folder.parent, folder.name, resume.inputs(how, []))
    names = sorted(folder.glob("epoch*.npz")) if watched else [best]
    return [_row(variant, path, cohort["val"]) for path in names]


def _row(variant, path, scans):
    """A row of COLUMNS: one network on the validation scans."""
    counts, maps = network_maps(scans, predict_scan, load_model(path))
    found = evaluate_maps(scans, counts, {MAIN: maps}, threshold_froc=False)
    counted = found.metrics[MAIN]
    located = rates([score.hits_true_count for score in found.scores[MAIN]])
    x = int(path.stem[5:]) if variant.study == "epochs" else variant.x
    numbers = [counted[name] for name in ("count_r2", "count_r", "count_mse")]
    numbers += [located[name] for name in ("tpr", "fp_per_scan")]
    seed = variant.settings.seed
    return (variant.study, variant.series, x, seed, *(round(float(v), 4) for v in numbers))


@command
def main(argv=None):
    """Study: see the module's first lines."""
    parser = new_parser(__doc__, "python -m weakunet.study")
    about = f"studies to run: {', '.join(STUDIES)} (default: all)"
    parser.add_argument("study", nargs="*", default=[], metavar="STUDY", help=about)
    about = "number of runs of every variant, each with a random seed of its own"
    parser.add_argument("--seeds", type=int, default=2, help=about)
    about = "folder of the results"
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help=about)
    parser.add_argument("--jobs", type=int, default=cores(), help="processes")
    args = parser.parse_args(argv)
    for name in args.study:
        if name not in STUDIES:
            raise InputError(f"{name}: no such study; choose from {', '.join(STUDIES)}")
    if min(args.seeds, args.jobs) < 1:
        raise InputError("--seeds and --jobs: must be at least 1")
    for study in args.study or STUDIES:
        todo = variants(study, args.seeds, args.out)
        found = map_processes(run_variant, todo, args.jobs)
        found = progress(found, f"study {study}", total=len(todo))
        rows = [row for own in found for row in own]
        write_csv(args.out / f"study_{study}.csv", COLUMNS, rows)
        path = args.out / f"study_{study}.png"
        points = [(row[1], row[2], row[4], row[7]) for row in rows]
        study_lines(path, *STUDIES[study], points, log_x=study == "scans")
        print(f"written: {path}", flush=True)


if __name__ == "__main__":
    main()

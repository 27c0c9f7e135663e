"""python -m weakunet.train: learn from one count per scan where the lesions are.

Without --data it simulates a phantom cohort. Writes into its folder settings.json, split.csv,
log.csv, curves.png, last.npz (all that --resume needs), best.npz (lowest validation error) and, at
the end, the test split's figures and pictures in test/.
"""

import argparse
import csv
import dataclasses
import json
import signal
import sys
from pathlib import Path

import numpy as np

from weakunet import backend, figures
from weakunet.checkpoint import FLIPS, load_model
from weakunet.cli import InputError, command, progress, write_csv, write_json
from weakunet.cohort import load_scan, read_cohort, split_cohort
from weakunet.evaluate import evaluate_counts, evaluate_maps
from weakunet.model import WeakUNet
from weakunet.parallel import cores
from weakunet.phantom import PRESETS, simulate_cohort
from weakunet.precision import PRECISIONS, pick_precision
from weakunet.predict import predict_copies
from weakunet.training import WEIGHTS, Run, train
from weakunet.volumes import require_spacing

SPLIT_COLUMNS = ("subject", "split", "count")
PHANTOM_SCANS = {"train": 800, "val": 100, "test": 30}


def option(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass
class Settings:
    """Everything that decides a run's result; each is a command-line option of the same name."""

    data: str | None = option(None, "cohort table (CSV); without it a phantom cohort is simulated")
    phantom: str = option("tiny", "which phantom to simulate: tiny, mid or standard")
    seed: int = option(0, "of the simulated data, the split, the first weights and the order")
    epochs: int = option(16, "passes over the training scans")
    batch: int = option(4, "scans per step")
    channels: tuple = option((8, 16, 32), "feature maps per level (the paper's scale: 32 64 128)")
    convs_per_level: int = option(1, "3x3x3 convolutions per level (the paper's scale: 2)")
    pool: str = option("lmax", "global pooling: lmax (sum of local maxima), max (paper) or mean")
    block: int = option(8, "edge of lmax's blocks, in voxels, even")
    gaussian_head: bool = option(
        False, "draw the last layer from a Gaussian too, as the paper does"
    )
    restart: int = option(0, "epochs after which the last layer starts again, once; 0: never")
    start_from: str | None = option(None, "start from the weights of this best.npz, same network")
    lr: float = option(1.0, "Adadelta's factor on its own step; falls at 70 % and 90 % of the end")
    rho: float = option(0.95, "Adadelta's decay of its running averages")
    eps: float = option(1e-7, "Adadelta's guard against division by 0: its first steps")
    flips: str = option("zyx", "axes along which scans are mirrored at random")
    shift_vox: int = option(2, "random shift along each axis, at most, in voxels")
    rotate_deg: float = option(0.0, "random rotation about each axis, at most, in degrees")
    scale: float = option(0.0, "random scaling, at most, as a fraction")
    precision: str = option("auto", "of the convolutions; auto: tf32 on a GPU, fp32 on a CPU")
    patience: int = option(0, "stop after so many epochs without a better one; 0: never")

    def __post_init__(self):
        self.channels = list(self.channels)
        for name, rule in CHOICES.items():
            if getattr(self, name) not in rule["choices"]:
                raise InputError(f"{name} {getattr(self, name)!r}: choose from {rule['choices']}")
        for name, low in LOWEST.items():
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if not low <= value < float("inf"):
                    option_name = name.replace("_", "-")
                    raise InputError(f"--{option_name} {value}: must be at least {low}")


LOWEST = {
    "seed": 0,
    "epochs": 1,
    "batch": 1,
    "channels": 1,
    "convs_per_level": 1,
    "block": 1,
    "restart": 0,
    "lr": 0,
    "rho": 0,
    "eps": 0,
    "shift_vox": 0,
    "rotate_deg": 0,
    "scale": 0,
    "patience": 0,
}
CHOICES = {
    "precision": {"choices": PRECISIONS},
    "phantom": {"choices": tuple(PRESETS)},
    "pool": {"choices": ("lmax", "max", "mean")},
    "flips": {"choices": FLIPS},
}


def parse_arguments(argv):
    """(Settings, out, device, resume, the settings that were given)."""
    parser = argparse.ArgumentParser(prog="python -m weakunet.train", description=__doc__)
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    for field in dataclasses.fields(Settings):
        name = "--" + field.name.replace("_", "-")
        text = field.metadata["help"].replace("%", "%%")  # argparse formats it
        options = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        if field.name == "gaussian_head":
            options["action"] = "store_true"
        elif field.name == "channels":
            options |= {"type": int, "nargs": "+"}
        else:
            options["type"] = str if field.default is None else type(field.default)
        options |= CHOICES.get(field.name, {})
        parser.add_argument(name, **options)
    given = vars(parser.parse_args(argv))
    out, device, resume = (given.pop(name) for name in ("out", "device", "resume"))
    return Settings(**given), out, device, resume, list(given)


def open_run(settings, out, resume, given):
    """(Settings, out): a new folder, or with `resume` the settings of the run in `out`."""
    if resume:
        if given:
            raise InputError(
                f"--resume: the settings come from {out}; leave out --{given[0].replace('_', '-')}"
            )
        path = (out or Path("runs")) / "settings.json"
        try:
            earlier = {"precision": "fp32"}  # of a run that an older program began
            return Settings(**earlier | json.loads(path.read_text(encoding="utf-8"))), out
        except FileNotFoundError:
            raise InputError(f"{path}: no such run; name its folder with --out") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); restore it or train anew") from None
    if out is None:
        data = Path(settings.data).stem if settings.data else f"phantom-{settings.phantom}"
        out = Path("runs") / f"{data}-{settings.pool}-seed{settings.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already holds something; add --resume, or give another --out")
    return settings, out


def load_scans(settings, splits):
    """dict split -> list of LoadedScan: the cohort of --data, or a simulated one."""
    if settings.data is None:
        wanted = {split: PHANTOM_SCANS[split] for split in splits}
        return simulate_cohort(settings.phantom, wanted, settings.seed, cores(), show=True)
    table = split_cohort(read_cohort(settings.data), settings.seed, settings.data)
    rows = [scan for scan in table if scan.split in splits]
    loaded = [load_scan(scan) for scan in progress(rows, "reading scans")]
    return {
        split: [scan for row, scan in zip(rows, loaded, strict=True) if row.split == split]
        for split in splits
    }


class Interrupt:
    """Ctrl-C (or a polite kill) asks for a stop after the current batch instead of an exception."""

    def __enter__(self):
        self.asked = False
        self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C is not polite

    def __call__(self):
        return self.asked


def test_best(out, scans, device, precision="fp32"):
    """Read the test scans once: predict them with best.npz, write test/ and print its table."""
    model = load_model(out / "best.npz").to(device, precision)
    for scan in scans:
        require_spacing(scan.volume, model.spacing_mm, scan.subject)
    predicted = [
        predict_copies(model, scan.volume, scan.slice_index) for scan in progress(scans, "testing")
    ]
    counts = [count for count, _ in predicted]
    if any(scan.centres_zyx is None for scan in scans):
        evaluate_counts([scan.count for scan in scans], counts, out / "test")
        return
    maps = {
        "intensities": [scan.volume.array for scan in scans],
        "regression_fcn": [heatmap for _, heatmap in predicted],
    }
    evaluate_maps(scans, counts, maps, out / "test")


def require_same_scans(path, rows):
    """InputError unless `rows` are what split.csv holds: a run goes on with its own scans."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            before = [tuple(row) for row in csv.reader(file)]
    except FileNotFoundError:
        raise InputError(f"{path}: missing; restore it or train into another folder") from None
    if before != [SPLIT_COLUMNS, *(tuple(map(str, row)) for row in rows)]:
        raise InputError(f"{path}: the cohort has changed since; train into another folder")


def same_network(path, model):
    """The network of the checkpoint `path`; InputError if it is not of `model`'s kind."""
    trained = load_model(path)
    if trained.settings != model.settings:
        raise InputError(
            f"{path}: holds another network ({trained.settings}); "
            f"give the options that make it the same ({model.settings})"
        )
    return trained


@command
def main(argv=None):
    settings, out, device, resume, given = parse_arguments(argv)
    settings, out = open_run(settings, out, resume, given)
    device = backend.pick_device(device)
    precision = pick_precision(settings.precision, device)
    print(f"device: {backend.device_name(device)}, {precision}; run: {out}", flush=True)
    scans = load_scans(settings, ("train", "val"))
    model = WeakUNet(
        settings.channels,
        settings.convs_per_level,
        settings.pool,
        settings.block,
        rng=np.random.default_rng([settings.seed, WEIGHTS]),
    )
    run = Run(model.to(device, precision), settings, out)
    rows = [(scan.subject, split, scan.count) for split in scans for scan in scans[split]]
    if resume and run.started():
        require_same_scans(out / "split.csv", rows)
        run.load()
    else:
        if settings.start_from:
            trained = same_network(settings.start_from, model)
            model.load(trained.params)
            model.global_pool.blocks = trained.global_pool.blocks  # w belongs to it
        write_json(out / "settings.json", dataclasses.asdict(settings))
        write_csv(out / "split.csv", SPLIT_COLUMNS, rows)
    with backend.explain_out_of_memory(), Interrupt() as stop:
        stopped = train(run, scans, stop)
    if stopped:
        print(f"stopped; go on with: python -m weakunet.train --out {out} --resume")
        sys.exit(130)
    val_counts = np.array([scan.count for scan in scans["val"]])
    figures.training_curves(out / "curves.png", run.history, float(val_counts.var()))
    if device == "cuda":
        print(f"GPU memory: {backend.device_memory()['held_bytes'] / 2**20:.0f} MiB at most")
    test_best(out, load_scans(settings, ("test",))["test"], device, precision)
    print(f"written: {out}")


if __name__ == "__main__":
    main()

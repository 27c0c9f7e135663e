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

from weakunet.data.load import load_scans
from weakunet.detection.predict_scan import predict_copies
from weakunet.evaluation.evaluate import evaluate_counts, evaluate_maps
from weakunet.figures.training import training_curves
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import pick_precision
from weakunet.model import WeakUNet
from weakunet.training import mpi
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import WEIGHTS, Run, train
from weakunet.training.settings import CHOICES, Settings
from weakunet.util.cli import InputError, command, progress, write_csv, write_json

SPLIT_COLUMNS = ("subject", "split", "count")


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
    predicted = [predict_copies(model, scan.volume) for scan in progress(scans, "testing")]
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


def begin_or_resume(run, rows, resume):
    """Write what a new run begins with, or take up the state that the run's folder holds."""
    if resume and run.started():
        require_same_scans(run.out / "split.csv", rows)
        run.load()
        return
    if run.settings.start_from:
        run.model.load(same_network(run.settings.start_from, run.model).params)
    write_json(run.out / "settings.json", dataclasses.asdict(run.settings))
    write_csv(run.out / "split.csv", SPLIT_COLUMNS, rows)


@command
def main(argv=None):
    with mpi.join() as ranks:
        run_training(argv, ranks)


def run_training(argv, ranks):
    settings, out, device, resume, given = parse_arguments(argv)
    settings, out = ranks.first(open_run, settings, out, resume, given)
    device = backend.pick_device(device)
    ranks.settle(settings.batch, device)
    precision = pick_precision(settings.precision, device)
    print(f"device: {backend.device_name(device)}, {precision}; run: {out}", flush=True)
    scans = ranks.first(load_scans, settings, ("train", "val"))
    model = WeakUNet(
        settings.channels,
        settings.convs_per_level,
        settings.pool,
        settings.block,
        rng=np.random.default_rng([settings.seed, WEIGHTS]),
    )
    run = Run(model.to(device, precision), settings, out, ranks)
    rows = [(scan.subject, split, scan.count) for split in scans for scan in scans[split]]
    ranks.first(begin_or_resume, run, rows, resume)
    ranks.take_up(run)
    with backend.explain_out_of_memory(), Interrupt() as stop:
        stopped = train(run, scans, stop)
    if stopped:
        print(f"stopped; go on with: python -m weakunet.train --out {out} --resume")
        sys.exit(130)
    if ranks.rank > 0:
        return
    val_counts = np.array([scan.count for scan in scans["val"]])
    training_curves(out / "curves.png", run.history, float(val_counts.var()))
    if device == "cuda":
        print(f"GPU memory: {backend.device_memory()['held_bytes'] / 2**20:.0f} MiB at most")
    test_best(out, load_scans(settings, ("test",))["test"], device, precision)
    print(f"written: {out}")


if __name__ == "__main__":
    main()

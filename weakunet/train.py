"""python -m weakunet.train: learn from one count per scan where the lesions are.

Without --data it simulates a phantom cohort. Into its folder it writes settings.json, split.csv,
log.csv, curves.png, last.npz (all that --resume needs), best.npz (lowest validation error) and, at
the end, the test split's figures and pictures in test/.
"""

import argparse
import csv
import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np

from weakunet.data.load import load_scans
from weakunet.data.volumes import require_spacing
from weakunet.detection.predict_scan import predict_with_flips
from weakunet.evaluation.evaluator import evaluate_maps
from weakunet.evaluation.tables import text_table, write_tables
from weakunet.figures.evaluation import draw_evaluation
from weakunet.figures.training import training_curves
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import pick_precision
from weakunet.training import mpi
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import train
from weakunet.training.run import Run
from weakunet.training.settings import Settings, add_options, resumed_settings
from weakunet.training.start import new_network, starting_weights
from weakunet.util.cli import InputError, command, new_parser, progress, write_csv, write_json
from weakunet.util.resume import array_digest

SPLIT_COLUMNS = ("subject", "split", "count", "sha256")  # older programs noted no content


def parse_arguments(argv):
    """The command line as a namespace; `given` holds its settings by name."""
    parser = new_parser(__doc__, "python -m weakunet.train")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME)")
    about = "auto: the GPU where there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=about)
    about = "go on with the run in --out; more --epochs lengthen it"
    parser.add_argument("--resume", action="store_true", help=about)
    add_options(parser)
    given = vars(parser.parse_args(argv))
    args = argparse.Namespace(**{name: given.pop(name) for name in ("out", "device", "resume")})
    for name in ("data", "start_from"):
        if given.get(name) not in (None, "auto", "none"):
            given[name] = os.path.abspath(given[name])  # found from any folder when it is resumed
    args.given = given
    return args


def open_run(args):
    """(Settings, folder) of a new run, or with --resume of the one in the folder."""
    settings, out = Settings(**args.given), args.out
    if out is None:
        data = Path(settings.data).stem if settings.data else f"phantom-{settings.phantom}"
        out = Path("runs") / f"{data}-{settings.pool}-seed{settings.seed}"
    if args.resume:
        return resumed_settings(out / "settings.json", args.given), out
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():  # said now, not when the first file is written
        raise InputError(f"{nearest}: not a folder; choose another --out")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: already holds something; add --resume, or give another --out")
    return settings, out


class Interrupt:
    """Ctrl-C (or SIGTERM) asks for a stop after the current batch instead of raising."""

    def __enter__(self):
        self.asked = False
        self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one raises

    def __call__(self):
        return self.asked


def evaluate_best(out, scans, device, precision="fp32"):
    """Predict the test scans with best.npz, write test/ and print its table."""
    model = load_model(out / "best.npz").to(device, precision)
    for scan in scans:
        require_spacing(scan.volume, model.spacing_mm, scan.subject)
    predicted = [
        predict_with_flips(model, scan.volume, scan.slice_index)
        for scan in progress(scans, "testing")
    ]
    counts, heatmaps = zip(*predicted, strict=True)
    maps = {"intensities": [scan.volume.array for scan in scans], "regression_fcn": heatmaps}
    result = evaluate_maps(scans, counts, maps)
    write_tables(result, out / "test")
    draw_evaluation(result, out / "test")
    print(text_table(result))


def require_same_scans(path, rows):
    """InputError unless `rows` are those of split.csv: a run goes on with its own scans."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *before = [tuple(row) for row in csv.reader(file)]
    except FileNotFoundError:
        raise InputError(f"{path}: missing; restore it or train into another folder") from None
    except ValueError:
        header, before = [], []
    now = [row[: len(header)] for row in rows]
    if before != now or len(header) < 3:
        names = [row[0] for row, other in zip(now, before, strict=False) if row != other]
        where = f" ({names[0]})" if names else ""
        raise InputError(
            f"{path}: the cohort has changed since{where}; restore it or train into another folder"
        )


def begin_or_resume(run, scans, args, device, precision, stop):
    """Load the state of the run's folder, or set the first weights; note settings and scans."""
    rows = [  # what a resumed run must find again
        (scan.subject, split, str(scan.count), array_digest(scan.volume.array, scan.slice_index))
        for split in scans
        for scan in scans[split]
    ]
    if args.resume and run.started():
        require_same_scans(run.out / "split.csv", rows)
        run.load()
    else:
        kept_in = run.out.parent, device, precision
        run.start_from(starting_weights(run.settings, scans["train"], *kept_in, stop))
    write_json(run.out / "settings.json", dataclasses.asdict(run.settings))
    write_csv(run.out / "split.csv", SPLIT_COLUMNS, rows)


@command
def main(argv=None):
    with mpi.join() as ranks:
        run_training(argv, ranks)


def run_training(argv, ranks):
    """Train in this process; `ranks` are all processes that train with it."""
    args = parse_arguments(argv)
    settings, out = ranks.first(open_run, args)
    device = backend.pick_device(args.device)
    ranks.settle(settings.batch, device)
    precision = pick_precision(settings.precision, device)
    print(f"device: {backend.device_name(device)}, {precision}; run: {out}", flush=True)
    scans = ranks.first(load_scans, settings, ("train", "val"))
    model = new_network(settings).to(device, precision)
    if ranks.size == 1:
        run = Run(model, settings, out)
    else:
        run = mpi.SharedRun(model, settings, out, ranks)
    with backend.explain_out_of_memory(), Interrupt() as stop:
        ranks.first(begin_or_resume, run, scans, args, device, precision, stop)
        stopped = ranks.any(stop.asked) or train(run, scans, lambda: ranks.any(stop()))
    if stopped:
        print(f"stopped; go on with: python -m weakunet.train --out {out} --resume")
        sys.exit(130)
    if ranks.rank > 0:
        return
    val_counts = np.array([scan.count for scan in scans["val"]])
    training_curves(out / "curves.png", run.history, float(val_counts.var()))
    if device == "cuda":
        print(f"GPU memory: {backend.device_memory()['held_bytes'] / 2**20:.0f} MiB at most")
    evaluate_best(out, load_scans(settings, ("test",))["test"], device, precision)
    print(f"written: {out}")


if __name__ == "__main__":
    main()

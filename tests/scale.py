"""Memory and time of preparing, predicting and evaluating cohorts of several sizes.

    python tests/scale.py --scans 50 500 [--jobs 2] [--out FOLDER]

Prints a table: per cohort and command the most memory that one of its processes held, the seconds
it took, those of processor time, and the latter per scan. The scans are simulated (tiny), the
network has its first weights.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAVE_MODEL = """
import sys
import numpy as np
from weakunet.training.checkpoint import save_checkpoint
from weakunet.model import WeakUNet
model = WeakUNet(rng=np.random.default_rng(0))
model.params["linear.b"][:] = 4
save_checkpoint(sys.argv[1], model)
"""


def run(*command):
    """Run `python COMMAND...`; returns peak MiB of its largest process, seconds, CPU seconds."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    arguments = [sys.executable, *map(str, command)]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    seconds = time.monotonic() - started
    return used.ru_maxrss / 2**10, seconds, used.ru_utime + used.ru_stime


def measure(scans, jobs, folder):
    """Command -> what `run` returns, for one cohort."""
    folder.mkdir()
    raw, prepared = folder / "raw", folder / "prepared"
    sizes = ("--train", 0, "--val", 0, "--test", scans)
    run(ROOT / "data_tools" / "make_phantom.py", "--out", raw, *sizes)
    run("-c", SAVE_MODEL, folder / "model.npz")
    data = ("--data", prepared / "cohort.csv", "--jobs", jobs)
    predicted = ("--predictions", folder / "predicted")
    commands = {
        "preprocess": ("--data", raw / "cohort.csv", "--out", prepared, "--jobs", jobs),
        "predict": ("--model", folder / "model.npz", *data, "--out", folder / "predicted"),
        "evaluate": (*predicted, *data, "--out", folder / "evaluated"),
    }
    return {name: run("-m", f"weakunet.{name}", *options) for name, options in commands.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the files in this new folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        print("| command | scans | peak MiB | s | CPU s | CPU s a scan |\n" + "| --- " * 6 + "|")
        for scans in args.scans:
            measured = measure(scans, args.jobs, out / str(scans))
            for name, (mib, seconds, cpu) in measured.items():
                figures = f"{mib:.0f} | {seconds:.1f} | {cpu:.1f} | {cpu / scans:.3f}"
                print(f"| {name} | {scans} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

"""The paper's Table 1 and figures from one command: python -m weakunet.compare

Trains every network of the comparison from counts alone, on several random seeds of data and
weights, with two global poolings (the sum of local maxima, ours, and the paper's global maximum).
Detects lesions in the maps of the paper's six methods on held-out scans and writes table1.csv,
table1.md, metrics.json, per_scan.csv, figure2.png, figure3.png, counts.png and report.html into
--out. The trained networks stay in --out/networks. Rerun the same command to resume.
"""

import time
from pathlib import Path

from weakunet.compare.cohorts import COHORTS, POOLS
from weakunet.compare.jobs import cpu_seconds, flat, plan, train_all
from weakunet.compare.methods import evaluate_seed
from weakunet.compare.results import write_all
from weakunet.compare.statistics import summarise
from weakunet.compare.tables import text_table
from weakunet.gpu import backend
from weakunet.util import resume
from weakunet.util.cli import InputError, command, new_parser, progress
from weakunet.util.processes import cores, map_processes


def evaluate_all(jobs, n_jobs, extra):
    """dict pool -> list of SeedResult; the first seed of the first pooling keeps an example."""
    seeds = [by_kind for own in jobs.values() for by_kind in own]
    tasks = [(by_kind, extra, by_kind is seeds[0]) for by_kind in seeds]
    found = map_processes(evaluate_seed, tasks, n_jobs)
    results = {pool: [] for pool in jobs}
    for result in progress(found, "seeds evaluated", total=len(tasks)):
        results[result.pool].append(result)
    return results


def parse_arguments(argv):
    parser = new_parser(__doc__, "python -m weakunet.compare")
    add, data = parser.add_argument, parser.add_mutually_exclusive_group()
    about = "simulated scans, and the networks that fit them"
    data.add_argument("--cohort", choices=tuple(COHORTS), default="quick", help=about)
    about = "cohort table of your own prepared scans, with lesion centres, instead of --cohort"
    data.add_argument("--data", type=Path, help=about)
    seeds = ", ".join(f"{cohort.seeds} for {name}" for name, cohort in COHORTS.items())
    about = f"number of runs, each with a random seed of its own (default: {seeds}, 3 for --data)"
    add("--seeds", type=int, help=about)
    about = "global poolings to compare: sum of local maxima, global maximum"
    add("--pool", nargs="+", choices=POOLS, default=POOLS, help=about)
    add("--epochs", type=int, help="number of epochs, to try it out with fewer")
    about = "add Grad-CAM and guided backpropagation"
    add("--extra", action="store_true", help=about)
    add("--out", type=Path, help="folder of the results (default: runs/compare-COHORT)")
    add("--jobs", type=int, help="processes (default: one per core; always 1 on a GPU)")
    about = "where to compute; auto: the GPU where there is one"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=about)
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / f"compare-{args.data.stem if args.data else args.cohort}"
    args.pool = list(dict.fromkeys(args.pool))
    if args.seeds is None:
        args.seeds = 3 if args.data else COHORTS[args.cohort].seeds
    for name in ("seeds", "epochs", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")
    return args


@command
def main(argv=None):
    """Compare: see the module's first lines."""
    args = parse_arguments(argv)
    device = backend.pick_device(args.device)
    n_jobs = 1 if device == "cuda" else args.jobs or cores()
    cohort = str(args.data or args.cohort)
    resume.begin(args.out, {"cohort": cohort, "epochs": args.epochs})
    jobs = plan(args, device)
    print(
        f"device: {backend.device_name(device)}, {n_jobs} processes; {len(flat(jobs))} networks of "
        f"{args.seeds} runs; folder: {args.out}",
        flush=True,
    )
    started = time.monotonic()
    train_all(jobs, n_jobs, args.out)
    trained = time.monotonic()
    results = evaluate_all(jobs, n_jobs, args.extra)
    tables = {pool: summarise(own) for pool, own in results.items()}
    cost = {
        "training_min": round((trained - started) / 60, 1),
        "evaluation_min": round((time.monotonic() - trained) / 60, 1),
        "training_cpu_min": round(cpu_seconds(jobs) / 60, 1),
        "processes": n_jobs,
        "device": backend.device_name(device),
    }
    settings = next(iter(jobs[args.pool[0]][0].values())).settings
    write_all(args.out, cohort, settings, results, tables, cost)
    print(text_table(tables))
    print(f"written: {args.out} (open report.html)")


if __name__ == "__main__":
    main()

"""The paper's Table 1 and figures from one command: python -m weakunet.compare

Trains every network of the comparison from counts alone, on several seeds of data and weights, with
two global poolings (the mean of local maxima, ours, and the paper's global maximum), detects
lesions in the maps of the paper's six methods on held-out scans, and writes table1.csv, table1.md,
metrics.json, per_scan.csv, figure2.png, figure3.png, counts.png and report.html into --out. The
trained networks stay in --out/networks; a command that was stopped goes on where it was.
"""

import argparse
import dataclasses
import signal
import sys
import time
from pathlib import Path

from weakunet.compare import results as compare_output
from weakunet.compare.cohorts import COHORTS, FIRST_SEED, POOLS, QUICK
from weakunet.compare.networks import DONE, NETWORKS, Job, evaluate_seed, train_network
from weakunet.compare.statistics import summarise
from weakunet.gpu import backend
from weakunet.training.settings import Settings
from weakunet.util.cli import InputError, command, progress, write_json
from weakunet.util.processes import cores, map_processes


def plan(args, device):
    """dict pool -> list over seeds of dict kind -> Job."""
    jobs, small_first = {}, args.data is None and COHORTS[args.cohort].small_first
    for pool in args.pool:
        jobs[pool] = []
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            if args.data is None:
                cohort = COHORTS[args.cohort]
                own = dict(cohort.settings, phantom=cohort.phantom)
                n = cohort.n
            else:
                own, n = {"data": str(args.data)}, {}
            own |= {"epochs": args.epochs} if args.epochs else {}
            settings = Settings(seed=seed, pool=pool, **own)
            # the ceiling does not pool, so one for all poolings will do
            kinds = (*NETWORKS, "voxelwise") if pool == args.pool[0] else NETWORKS
            by_kind = {}
            for kind in kinds:
                first = None
                if small_first and kind != "voxelwise":
                    small = dataclasses.replace(settings, phantom="tiny", epochs=16, restart=6)
                    first = Job(kind, small, QUICK, args.out / "small", device)
                by_kind[kind] = Job(kind, settings, n, args.out, device, first)
            jobs[pool].append(by_kind)
    return jobs


def train_all(jobs, n_jobs, out):
    """Train what is missing, a network a process; exit code 130 when interrupted."""
    todo = [job for seeds in jobs.values() for by_kind in seeds for job in by_kind.values()]
    todo.sort(key=lambda job: job.settings.seed)  # neighbours share their simulated scans
    stop_file = out / "stop"

    def ask(number, frame):
        stop_file.touch()  # the workers finish their batch and save
        print("stopping after the current batches ...", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stopped = [
            stop
            for _, stop in zip(
                progress(todo, "networks trained"),
                map_processes(train_network, todo, n_jobs),
                strict=True,
            )
        ]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked = stop_file.exists()
        stop_file.unlink(missing_ok=True)
    if asked or any(stopped):
        print(f"stopped; the same command goes on: --out {out}")
        sys.exit(130)


def evaluate_all(jobs, n_jobs, extra):
    """dict pool -> list of SeedResult; the first seed of the first pooling keeps examples."""
    tasks = [
        (by_kind, extra, i == 0 and pool == next(iter(jobs)))
        for pool in jobs
        for i, by_kind in enumerate(jobs[pool])
    ]
    found = map_processes(evaluate_seed, tasks, n_jobs)
    results = {pool: [] for pool in jobs}
    for _, result in zip(progress(tasks, "seeds evaluated"), found, strict=True):
        results[result.pool].append(result)
    return results


def cpu_seconds(jobs):
    """Processor time of all networks' trainings (of the last part of one that was stopped)."""
    all_jobs = [job for seeds in jobs.values() for by_kind in seeds for job in by_kind.values()]
    all_jobs += [job.first for job in all_jobs if job.first]
    done = [compare_output.read_json(job.folder / DONE) for job in all_jobs]
    return sum(row["cpu_seconds"] for row in done)


def parse_arguments(argv):
    parser = argparse.ArgumentParser("python -m weakunet.compare", description=__doc__)
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--cohort", choices=tuple(COHORTS), default="quick", help="simulated scans")
    data.add_argument("--data", type=Path, help="your own prepared scans, with lesion centres")
    parser.add_argument("--seeds", type=int, help="trainings (default: the cohort's; data: 3)")
    parser.add_argument("--pool", nargs="+", choices=POOLS, default=POOLS, help="global pooling")
    parser.add_argument("--epochs", type=int, help="fewer, to try it out")
    parser.add_argument("--extra", action="store_true", help="Grad-CAM, guided backpropagation")
    parser.add_argument("--out", type=Path, help="folder (default: runs/compare-COHORT)")
    parser.add_argument("--jobs", type=int, help="processes (default: one a core; 1 on a GPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / f"compare-{args.data.stem if args.data else args.cohort}"
    args.pool = list(dict.fromkeys(args.pool))
    args.seeds = args.seeds if args.seeds is not None else 3 if args.data else None
    args.seeds = COHORTS[args.cohort].seeds if args.seeds is None else args.seeds
    for name in ("seeds", "epochs", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")
    return args


def require_same_plan(out, args):
    """Write plan.json; InputError when the folder holds another comparison."""
    wanted = {
        "cohort": None if args.data else args.cohort,
        "data": str(args.data) if args.data else None,
        "epochs": args.epochs,
    }
    path = out / "plan.json"
    if path.exists():
        if compare_output.read_json(path) != wanted:
            raise InputError(f"{out}: holds another comparison; choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already holds something else; choose another --out")
    write_json(path, wanted)


@command
def main(argv=None):
    """Compare: see the module's first lines."""
    args = parse_arguments(argv)
    device = backend.pick_device(args.device)
    n_jobs = 1 if device == "cuda" else args.jobs or cores()
    require_same_plan(args.out, args)
    jobs = plan(args, device)
    n_networks = sum(len(by_kind) for seeds in jobs.values() for by_kind in seeds)
    print(
        f"device: {backend.device_name(device)}, {n_jobs} processes; {n_networks} networks, "
        f"{args.seeds} seeds; folder: {args.out}",
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
    compare_output.write_all(args.out, args, jobs, results, tables, cost)
    print(compare_output.text_table(tables))
    print(f"written: {args.out} (open report.html)")


if __name__ == "__main__":
    main()

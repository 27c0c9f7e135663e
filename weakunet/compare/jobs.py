"""The networks of the comparison: which there are, and how they are trained, one per process.

A finished network is kept while its settings and scans are the same (see util/resume.py). An
interrupted training resumes with the same bits.
"""

import contextlib
import dataclasses
import functools
import shutil
import signal
import sys
import time
from pathlib import Path

from weakunet.compare.cohorts import COHORTS, FIRST_SEED, QUICK
from weakunet.compare.voxelwise import VoxelwiseRun
from weakunet.data.cohort import read_cohort
from weakunet.data.load import load_scans
from weakunet.data.phantom import simulate_cohort
from weakunet.training.loop import train
from weakunet.training.run import Run
from weakunet.training.settings import Settings
from weakunet.training.start import new_network
from weakunet.util import resume
from weakunet.util.cli import progress
from weakunet.util.processes import map_processes
from weakunet.util.threads import set_threads

NETWORKS = ("fcn", "coarse")  # with and without the upsampling path


@dataclasses.dataclass(frozen=True)
class Job:
    """A network to train: kind 'fcn', 'coarse' or 'voxelwise', its settings and where it goes."""

    kind: str
    settings: Settings
    n: dict  # split -> scans of a phantom cohort
    out: Path
    device: str = "cpu"
    first: "Job | None" = None  # start from the weights of this one, trained on small scans

    @property
    def name(self):
        """Its name in the folder `networks`."""
        kind = "voxelwise" if self.kind == "voxelwise" else f"{self.settings.pool}-{self.kind}"
        return f"{kind}-seed{self.settings.seed}"

    @property
    def folder(self):
        return self.out / "networks" / self.name

    @property
    def stop_file(self):
        return self.out / "stop"

    def made_from(self):
        """(settings, files) that decide the result, as util/resume.py takes them."""
        how = {"kind": self.kind, "n": self.n, **dataclasses.asdict(self.settings)}
        how["first"] = self.first and self.first.made_from()[0]
        if self.settings.data is None:
            return how, []
        rows = read_cohort(self.settings.data)
        return how, [self.settings.data, *(path for r in rows for path in (r.image, r.centres))]

    def noted(self, state, file):
        """What was noted as `state` of the network; None where it is not of these inputs."""
        name = f"{self.name}-{state}"
        return resume.noted(self.folder.parent, name, *self.made_from(), [self.folder / file])

    def note(self, state, made_from, value=True):
        resume.note(self.folder.parent, f"{self.name}-{state}", made_from, value)


def plan(args, device):
    """dict pool -> list over seeds of dict kind -> Job."""
    cohort, simulated = COHORTS[args.cohort], args.data is None
    own = dict(cohort.settings, phantom=cohort.phantom) if simulated else {"data": str(args.data)}
    own |= {"epochs": args.epochs} if args.epochs else {}

    def job(kind, pool, seed):
        settings, first = Settings(seed=seed, pool=pool, **own), None
        if kind == "voxelwise":  # its small labels would fade where a rotation interpolates them
            settings = dataclasses.replace(settings, pool="lmax", rotate_deg=0.0)
        if simulated and cohort.small_first and kind != "voxelwise":
            small = dataclasses.replace(settings, phantom="tiny", epochs=Settings.epochs)
            first = Job(kind, small, QUICK, args.out / "small", device)
        return Job(kind, settings, cohort.n if simulated else {}, args.out, device, first)

    jobs, kinds = {}, (*NETWORKS, "voxelwise")
    for pool in args.pool:
        seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
        jobs[pool] = [{kind: job(kind, pool, seed) for kind in kinds} for seed in seeds]
        kinds = NETWORKS  # the voxel-wise network does not pool, so one for all poolings will do
    return jobs


def flat(jobs):
    """The jobs of a plan as a list."""
    return [job for seeds in jobs.values() for by_kind in seeds for job in by_kind.values()]


@functools.lru_cache(maxsize=1)
def _phantom(preset, n, seed):
    return simulate_cohort(preset, dict(n), seed)


def scans_of(job, *splits):
    """dict split -> list of LoadedScan, from --data or simulated."""
    if job.settings.data is None:
        cohort = _phantom(job.settings.phantom, tuple(job.n.items()), job.settings.seed)
        return {split: cohort[split] for split in splits}
    return load_scans(job.settings, splits)


def train_network(job, stop_file=None):
    """Train the job's network unless it is there; True when it was told to stop.

    What training prints goes to log.txt in its folder.
    """
    folder, settings = job.folder, job.settings
    stop_file = stop_file or job.stop_file
    if job.noted("done", "best.npz"):
        return False
    if job.first is not None and train_network(job.first, stop_file):
        return True
    if job.device == "cpu":
        set_threads(1)  # every core has a network of its own
    if not job.noted("begun", "last.npz"):
        shutil.rmtree(folder, ignore_errors=True)  # of other scans or settings
    made_from = resume.inputs(*job.made_from())
    scans = scans_of(job, "train", "val")
    model = new_network(settings, upsampling=job.kind != "coarse").to(job.device)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        run = (VoxelwiseRun if job.kind == "voxelwise" else Run)(model, settings, folder)
        if run.started():
            run.load()
        else:
            run.start_from(job.first and job.first.folder / "best.npz")
            job.note("begun", made_from)
        stopped = train(run, scans, stop_file.exists)
    if not stopped:
        job.note("done", made_from, {"cpu_seconds": round(time.process_time() - started, 1)})
    return bool(stopped)


def train_all(jobs, n_jobs, out):
    """Train what is missing, one network per process; exits with code 130 when interrupted."""
    todo = sorted(flat(jobs), key=lambda job: job.settings.seed)  # they share simulated scans
    stop_file = out / "stop"

    def ask(number, frame):
        stop_file.touch()  # the workers finish their batch and save
        print("stopping after the current batches ...", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        trained = map_processes(train_network, todo, n_jobs)
        stopped = any(list(progress(trained, "networks trained", total=len(todo))))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stopped_by_signal = stop_file.exists()
        stop_file.unlink(missing_ok=True)
    if stopped_by_signal or stopped:
        print(f"stopped; rerun the same command to resume: --out {out}")
        sys.exit(130)


def cpu_seconds(jobs):
    """Processor time of all trainings; of a resumed one, only that of its last part."""
    trained = flat(jobs)
    trained += [job.first for job in trained if job.first]
    return sum(job.noted("done", "best.npz")["cpu_seconds"] for job in trained)

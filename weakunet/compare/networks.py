"""One seed of the comparison: train its networks, draw its maps, count its hits.

The paper's six methods (section 3, Table 1) and one more:

    (a) intensities                 the prepared image itself
    (b) saliency                    |d count / d S| of the regression network without upsampling
    (c) saliency_fcn                the same of the FCN
    (d) regression                  eq. 3 without upsampling, its coarse map brought up linearly
    (e) regression_fcn              eq. 3 with the FCN
    (f) intensities_regression_fcn  weighted sum of (a) and (e), the weight chosen on validation
    voxelwise                       the ceiling: the FCN's own layers, trained with voxel labels

Each map is thresholded at the count that its own network predicts; (a) and (f) take the FCN's, the
voxel-wise network the number of its components above one threshold chosen on validation.

Ours, and the same for every network: counts and maps come from mirrored copies (see tta.py).
"""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path

import numpy as np

from weakunet.compare import baselines, voxelwise
from weakunet.data.load import load_scans
from weakunet.data.phantom import simulate_cohort
from weakunet.data.slices import in_slice
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.predict_scan import predict_scan
from weakunet.detection.tta import mirrored
from weakunet.evaluation.froc import froc_by_count
from weakunet.evaluation.metrics import correlation, count_hits
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import WEIGHTS, Run, train
from weakunet.training.settings import Settings
from weakunet.util.cli import InputError, write_json
from weakunet.util.threads import set_threads

NETWORKS = ("fcn", "coarse")  # with and without the upsampling path
DONE = "done.json"
METHODS = {
    "intensities": "(a) intensities",
    "saliency": "(b) saliency, regression network",
    "saliency_fcn": "(c) saliency, regression FCN",
    "regression": "(d) regression network",
    "regression_fcn": "(e) regression FCN",
    "intensities_regression_fcn": "(f) intensities + regression FCN",
}
EXTRA = {
    "grad_cam": "Grad-CAM, regression network",
    "grad_cam_fcn": "Grad-CAM, regression FCN",
    "guided": "guided backpropagation, regression network",
    "guided_fcn": "guided backpropagation, regression FCN",
}
CEILING = {"voxelwise": "voxel-wise labels, same layers"}


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
    def folder(self):
        name = "voxelwise" if self.kind == "voxelwise" else f"{self.settings.pool}-{self.kind}"
        return self.out / "networks" / f"{name}-seed{self.settings.seed}"

    @property
    def stop_file(self):
        return self.out / "stop"


@functools.lru_cache(maxsize=1)
def _phantom(preset, n, seed):
    return simulate_cohort(preset, dict(n), seed)


def cohort_of(settings, n, *splits):
    """dict split -> list of LoadedScan, from --data or simulated."""
    if settings.data is None:
        cohort = _phantom(settings.phantom, tuple(n.items()), settings.seed)
        return {split: cohort[split] for split in splits}
    return load_scans(settings, splits)


def train_network(job, stop_file=None):
    """Train the job's network unless its folder holds it; True when it was told to stop.

    Says nothing: what training prints goes to log.txt in its folder. Goes on where it was stopped.
    """
    folder, settings = job.folder, job.settings
    stop_file = stop_file or job.stop_file
    if (folder / DONE).exists():
        return False
    if job.first is not None and train_network(job.first, stop_file):
        return True
    if job.device == "cpu":
        set_threads(1)  # every core has a network of its own
    scans = cohort_of(settings, job.n, "train", "val")
    model = WeakUNet(
        settings.channels,
        settings.convs_per_level,
        settings.pool,
        settings.block,
        upsampling=job.kind != "coarse",
        rng=np.random.default_rng([settings.seed, WEIGHTS]),
    ).to(job.device)
    if job.first is not None:
        model.load(load_model(job.first.folder / "best.npz").params)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if job.kind == "voxelwise":
            stopped = voxelwise.train_voxelwise(model, settings, scans, folder, stop_file.exists)
        else:
            run = Run(model, settings, folder)
            if run.started():
                run.load()
            else:
                write_json(folder / "settings.json", dataclasses.asdict(settings))
            stopped = train(run, scans, stop_file.exists)
    if not stopped:
        write_json(folder / DONE, {"cpu_seconds": round(time.process_time() - started, 1)})
    return bool(stopped)


@dataclasses.dataclass
class SeedResult:
    """What one seed and one global pooling give; lists run over the test scans."""

    seed: int
    pool: str
    subjects: list
    true: list
    counts: dict  # method -> predicted counts, not rounded
    hits: dict  # method -> (S, 3) TP, FP, FN at the predicted count
    hits_true: dict  # method -> the same at the true count
    curves: dict  # method -> FROC over factors of the count
    thresholds: dict  # method -> threshold of every scan
    val_r: dict  # network -> correlation of predicted and true validation counts
    weight: float  # of (f)
    example: dict  # scan and its maps, of the first seed: for the figures


def network_maps(scans, function, model):
    """(counts, maps) over scans of a function of model and Volume, from mirrored copies."""
    bound = functools.partial(function, model)
    pairs = [mirrored(bound, scan.volume, model.flips) for scan in scans]
    return [count for count, _ in pairs], [array for _, array in pairs]


def all_maps(jobs, scans, extra):
    """Counts and maps of every method on the test scans.

    Parameters
    ----------
    jobs : dict kind -> Job, all trained
    scans : dict with the splits val and test
    extra : add the maps beyond the paper

    Returns
    -------
    counts, maps : method -> a count / a map per test scan;  val_r;  weight of (f)
    """
    test, val = scans["test"], scans["val"]
    true_val = [scan.count for scan in val]
    counts, maps, val_r = {}, {}, {}
    for kind, ending, map_name in (("coarse", "", "regression"), ("fcn", "_fcn", "regression_fcn")):
        if kind not in jobs:
            continue
        model = load_model(jobs[kind].folder / "best.npz").to(jobs[kind].device)
        functions = {map_name: predict_scan, f"saliency{ending}": baselines.saliency}
        if extra:
            functions[f"grad_cam{ending}"] = baselines.grad_cam
            functions[f"guided{ending}"] = baselines.guided_backprop
        for name, function in functions.items():
            counts[name], maps[name] = network_maps(test, function, model)
            counts[name] = counts[map_name]  # a gradient comes without one
        val_counts, val_maps = network_maps(val, predict_scan, model)
        val_r[kind] = correlation(true_val, val_counts)
    weight = float("nan")
    if "fcn" in jobs:
        images = [scan.volume.array for scan in test]
        val_images = [scan.volume.array for scan in val]
        weight, scale = baselines.choose_weight(val_maps, val_images, val, val_counts)
        counts["intensities"], maps["intensities"] = counts["regression_fcn"], images
        name = "intensities_regression_fcn"
        counts[name] = counts["regression_fcn"]
        pairs = zip(maps["regression_fcn"], images, strict=True)
        maps[name] = [baselines.combine(m, image, weight, scale) for m, image in pairs]
    if "voxelwise" in jobs:
        model = load_model(jobs["voxelwise"].folder / "best.npz").to(jobs["voxelwise"].device)
        val_own = network_maps(val, predict_scan, model)[1]
        cut = [in_slice(scan, own)[1] for scan, own in zip(val, val_own, strict=True)]
        level = voxelwise.components_threshold(cut, true_val)
        own = maps["voxelwise"] = network_maps(test, predict_scan, model)[1]
        cut = [in_slice(scan, array)[1] for scan, array in zip(test, own, strict=True)]
        counts["voxelwise"] = [voxelwise.count_components(array, level) for array in cut]
    order = [name for name in (*METHODS, *EXTRA, *CEILING) if name in maps]
    return {n: counts[n] for n in order}, {n: maps[n] for n in order}, val_r, weight


def evaluate_seed(task):
    """SeedResult of (jobs: dict kind -> Job, extra, keep_example)."""
    jobs, extra, keep_example = task
    first = next(iter(jobs.values()))
    if first.device == "cpu":
        set_threads(1)
    scans = cohort_of(first.settings, first.n, "val", "test")
    for scan in scans["val"] + scans["test"]:
        if scan.centres_zyx is None:
            raise InputError(f"{scan.subject}: no lesion centres; validation and test need them")
    counts, maps, val_r, weight = all_maps(jobs, scans, extra)
    test = scans["test"]
    cut = [in_slice(s, *(maps[name][i] for name in maps)) for i, s in enumerate(test)]
    cut_maps = {name: [row[k + 1] for row in cut] for k, name in enumerate(maps)}
    lesions = [row[0].centres_zyx for row in cut]
    true = [scan.count for scan in test]
    result = SeedResult(
        first.settings.seed,
        first.settings.pool,
        [scan.subject for scan in test],
        true,
        counts,
        {},
        {},
        {},
        {},
        val_r,
        weight,
        {},
    )
    for name, own in cut_maps.items():
        found = [detect_lesions(m, whole_count(c)) for m, c in zip(own, counts[name], strict=True)]
        result.thresholds[name] = [detections.threshold for detections in found]
        result.hits[name] = _hits(found, lesions)
        at_true = [detect_lesions(m, len(c)) for m, c in zip(own, lesions, strict=True)]
        result.hits_true[name] = _hits(at_true, lesions)
        result.curves[name] = froc_by_count(own, counts[name], lesions)
    if keep_example:
        chosen = examples(test)
        result.example = {
            i: {"scan": test[i], "maps": {name: maps[name][i] for name in maps}} for i in chosen
        }
    return result


def _hits(found, lesions):
    pairs = zip(found, lesions, strict=True)
    return np.array([count_hits(detections.centres_zyx, own) for detections, own in pairs])


def examples(scans):
    """Indices of the scans for the figures: with the median and the 80th percentile of lesions.

    Chosen by the truth alone, never by what a method found.
    """
    order = sorted(range(len(scans)), key=lambda i: (len(scans[i].centres_zyx), i))
    return [order[len(order) // 2], order[(4 * len(order)) // 5]]

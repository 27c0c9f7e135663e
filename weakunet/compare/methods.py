"""The methods of the comparison, and what one seed's networks find with each.

The paper's six methods (section 3, Table 1) and one more:

    (a) intensities                 the prepared image itself
    (b) saliency                    |d count / d S| of the regression network without upsampling
    (c) saliency_fcn                the same of the FCN
    (d) regression                  eq. 3 without upsampling, its coarse map upsampled trilinearly
    (e) regression_fcn              eq. 3 with the FCN
    (f) intensities_regression_fcn  weighted sum of (a) and (e), the weight chosen on validation
    voxelwise                       fully supervised upper bound: the FCN's layers, voxel labels

Each map is thresholded at the count that its own network predicts; (a) and (f) take the FCN's, the
voxel-wise network the number of its components above one threshold chosen on validation. Ours, and
the same for every network: test-time augmentation (see detection/tta.py).
"""

import functools
from dataclasses import dataclass

from weakunet.compare import baselines, voxelwise
from weakunet.compare.jobs import scans_of
from weakunet.data.slices import in_slice
from weakunet.detection.predict_scan import predict_scan
from weakunet.detection.tta import average_over_flips
from weakunet.evaluation.evaluator import evaluate_maps
from weakunet.evaluation.metrics import correlation
from weakunet.training.checkpoint import load_model
from weakunet.util.cli import InputError
from weakunet.util.threads import set_threads

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
UPPER_BOUND = {"voxelwise": "fully supervised upper bound (voxel labels)"}
NAMES = METHODS | EXTRA | UPPER_BOUND
PAPER = {  # the paper's Table 1, on its own scans: TPR %, FPav, FDR %
    "intensities": (40.6, 2.3, 59.8),
    "saliency": (39.8, 2.7, 54.2),
    "saliency_fcn": (18.7, 3.3, 70.2),
    "regression": (19.6, 3.2, 70.5),
    "regression_fcn": (54.8, 1.9, 37.7),
    "intensities_regression_fcn": (62.0, 1.5, 31.4),
}


@dataclass
class SeedResult:
    """What one seed and one global pooling give."""

    seed: int
    pool: str
    scores: dict  # method -> list of Score, one per test scan
    curves: dict  # method -> FROC by count
    val_r: dict  # network -> correlation of predicted and true validation counts
    weight: float  # of the heatmap in (f)
    example: tuple | None  # (index of a test scan, LoadedScan, method -> map), for the figures


def network_maps(scans, function, model):
    """(counts, maps) over scans of a function of model and Volume, with test-time augmentation."""
    bound = functools.partial(function, model)
    pairs = (average_over_flips(bound, s.volume, model.flips, s.slice_index) for s in scans)
    counts, maps = zip(*pairs, strict=True)
    return list(counts), list(maps)


def all_maps(jobs, scans, extra):
    """Counts and maps of every method on the test scans.

    Parameters: jobs, dict kind -> Job, all trained (fcn and coarse, maybe voxelwise); scans, dict
    with the splits val and test; extra, add the maps beyond the paper.
    Returns: counts and maps, each method -> one per test scan; val_r; weight of (f).
    """
    test, val = scans["test"], scans["val"]
    true_val = [scan.count for scan in val]
    counts, maps, val_r = {}, {}, {}
    for kind, ending in (("coarse", ""), ("fcn", "_fcn")):
        model = _trained(jobs[kind])
        functions = {f"regression{ending}": predict_scan, f"saliency{ending}": baselines.saliency}
        if extra:
            functions[f"grad_cam{ending}"] = baselines.grad_cam
            functions[f"guided{ending}"] = baselines.guided_backprop
        for name, function in functions.items():
            counts[name], maps[name] = network_maps(test, function, model)
            counts[name] = counts[f"regression{ending}"]  # a gradient comes without one
        val_counts, val_maps = network_maps(val, predict_scan, model)
        val_r[kind] = correlation(true_val, val_counts)
    images, heatmaps = [scan.volume.array for scan in test], maps["regression_fcn"]
    val_images = [scan.volume.array for scan in val]
    weight, scale = baselines.choose_weight(val_maps, val_images, val, val_counts)  # of the FCN
    both = [baselines.combine(*pair, weight, scale) for pair in zip(heatmaps, images, strict=True)]
    for name, own in (("intensities", images), ("intensities_regression_fcn", both)):
        counts[name], maps[name] = counts["regression_fcn"], own
    if "voxelwise" in jobs:
        model = _trained(jobs["voxelwise"])
        cut = _in_slices(val, network_maps(val, predict_scan, model)[1])
        level = voxelwise.components_threshold(cut, true_val)
        maps["voxelwise"] = network_maps(test, predict_scan, model)[1]
        cut = _in_slices(test, maps["voxelwise"])
        counts["voxelwise"] = [voxelwise.count_components(array, level) for array in cut]
    order = [name for name in NAMES if name in maps]
    return {n: counts[n] for n in order}, {n: maps[n] for n in order}, val_r, weight


def _trained(job):
    return load_model(job.folder / "best.npz").to(job.device)


def _in_slices(scans, maps):
    """The maps, each cut to the slice that was counted in its scan."""
    return [in_slice(scan, array)[1] for scan, array in zip(scans, maps, strict=True)]


def evaluate_seed(task):
    """SeedResult of (jobs: dict kind -> Job, extra, keep_example)."""
    jobs, extra, keep_example = task
    first = next(iter(jobs.values()))
    if first.device == "cpu":
        set_threads(1)
    scans = scans_of(first, "val", "test")
    for scan in scans["val"] + scans["test"]:
        if scan.centres_zyx is None:
            raise InputError(f"{scan.subject}: no lesion centres; validation and test need them")
    counts, maps, val_r, weight = all_maps(jobs, scans, extra)
    found = evaluate_maps(scans["test"], counts, maps, threshold_froc=False)
    example = None
    if keep_example:
        i = choose_example(scans["test"])
        scan, *cut = in_slice(scans["test"][i], *(own[i] for own in maps.values()))
        example = i, scan, dict(zip(maps, cut, strict=True))
    seed, pool = first.settings.seed, first.settings.pool
    return SeedResult(seed, pool, found.scores, found.curves, val_r, weight, example)


def choose_example(scans):
    """Index of the scan for the figures: at the 80th percentile of the numbers of lesions.

    Chosen by the truth alone, never by what a method found.
    """
    order = sorted(range(len(scans)), key=lambda i: (len(scans[i].centres_zyx), i))
    return order[(4 * len(order)) // 5]

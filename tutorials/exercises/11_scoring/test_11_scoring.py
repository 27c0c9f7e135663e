"""Grades exercise 11; small cases that can be counted by hand."""

import numpy as np
from grading import compare, parts

HITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 4], [2, 1, 1], [0, 3, 0], [6, 0, 1], [1, 1, 2]])
TWICE = "a lesion is found by two detections: one to one, the second is a false positive"
GREEDY = "a nearer pair took a partner that another one needed: as many pairs as possible"
GATED = "the nearest partners were chosen first, the radius applied later: pairs are lost"
DEAREST = "the most expensive matching is taken: the cost is 0 WITHIN the radius and 1 beyond"
BEYOND = "every pair is a hit: of the matched ones only those within the radius are"
SWAPPED = "FP and FN are swapped: FP are the detections left, FN the lesions"
# detections and lesions along z, at radius 3: the right (TP, FP, FN), and wrong ones
EXACTLY = [
    ((0, 1, 1), "a distance of exactly the radius is a hit: <=, not <"),
    ((1, 0, 1), "FN are all lesions: only those that are left are missed"),
    ((1, 1, 0), "FP are all detections: only those without a partner are wrong"),
]
THREE = [((2, 1, -1), TWICE), ((2, 1, 0), TWICE), ((0, 3, 1), DEAREST), ((1, 0, 2), SWAPPED)]
CASES = [
    ([5], [2], (1, 0, 0), EXACTLY),
    ([5, 6, 20], [5], (1, 2, 0), THREE),
    ([5], [4, 6], (1, 0, 1), [((2, -1, 0), "one detection found two lesions: one to one")]),
    ([4, 1], [3, 7], (2, 0, 0), [((1, 1, 1), GREEDY)]),
    ([4.9, 100], [0, 5], (1, 1, 1), [((0, 2, 2), GATED), ((2, 0, 0), BEYOND)]),
    ([], [1, 2], (0, 0, 2), [((0, 0, 0), "no detection: every lesion is missed")]),
    ([1, 2], [], (0, 2, 0), [((0, 0, 0), "no lesion: every detection is a false positive")]),
    ([1, 9], [8, 30, 50], (1, 1, 2), [((1, 2, 1), SWAPPED)]),
]


def test_count_hits(answer):
    for detections, lesions, right, mistakes in CASES:
        points = [
            np.array([(z, 1, 1) for z in at], float).reshape(-1, 3) for at in (detections, lesions)
        ]
        hits = answer.count_hits(*points, 3.0)
        compare(f"count_hits of detections {detections}, lesions {lesions}", hits, right, mistakes)


def test_rates(answer):
    result = parts("rates", answer.rates(HITS), "TPR, FPav, FDR")
    tp, fp, fn = HITS.sum(axis=0)
    lesions = HITS[:, 0] + HITS[:, 2]
    own = HITS[lesions > 0, 0] / lesions[lesions > 0]
    mistakes = [
        (own.mean(), "the TPR is averaged over the scans: here all lesions are pooled"),
        (own.sum() / len(HITS), "the TPR is averaged, and the scan without lesions counts as 0"),
        (tp / (tp + fp), "this is the precision: the TPR divides by the LESIONS, TP + FN"),
        (fn / (tp + fn), "this is the fraction of lesions missed: 1 - TPR"),
        (100 * tp / (tp + fn), "the TPR is in percent: return a fraction"),
    ]
    compare("TPR", result[0], tp / (tp + fn), mistakes)
    mistakes = [
        (fp / (lesions > 0).sum(), "the scan without lesions is left out: its FPs count as well"),
        (fp / (tp + fn), "FPav is per scan, not per lesion"),
        (fp, "FPav is the sum: divide by the number of scans"),
        (fp / (tp + fp), "FPav and FDR are swapped: return TPR, FPav, FDR"),
    ]
    compare("FPav", result[1], fp / len(HITS), mistakes)
    mistakes = [
        (tp / (tp + fp), "this is the precision: FDR = 1 - precision"),
        (fp / (tp + fn), "FDR divides by the DETECTIONS, TP + FP"),
    ]
    compare("FDR", result[2], fp / (tp + fp), mistakes)


def test_bootstrap_interval(answer):
    draws = np.random.default_rng(11).integers(len(HITS), size=(500, len(HITS)))
    tp, fp, fn = np.moveaxis(HITS[draws], -1, 0)
    other = np.random.default_rng(11).integers(len(HITS), size=(len(HITS), 500))
    few_tp, _, few_fn = np.moveaxis(HITS[other].sum(axis=1), -1, 0)
    few = few_tp / (few_tp + few_fn)
    precision = tp.sum(axis=1) / (tp + fp).sum(axis=1)
    pooled = tp.sum(axis=1) / (tp + fn).sum(axis=1)
    own = np.divide(tp, tp + fn, out=np.zeros(tp.shape), where=tp + fn > 0).mean(axis=1)
    all_tp, _, all_fn = HITS.sum(axis=0)
    middle, sd = pooled.mean(), pooled.std()
    mistakes = [
        (np.full(2, all_tp / (all_tp + all_fn)), "no spread: draw WITH replacement (rng.integers)"),
        (np.percentile(pooled, [5, 95]), "this is the 90 % interval: 2.5 and 97.5 leave 95 %"),
        (np.percentile(own, [2.5, 97.5]), "each scan's own TPR is averaged: pool the lesions"),
        ((middle - sd, middle + sd), "this is mean -+ one standard deviation: take percentiles"),
        ((middle - 1.96 * sd, middle + 1.96 * sd), "this assumes a Gaussian: take percentiles"),
        ((pooled.min(), pooled.max()), "this is the range: take percentiles"),
        (np.percentile(pooled, [25, 75]), "half of the resamples lie in this interval, not 95 %"),
        (np.percentile(pooled, [0.025, 0.975]), "np.percentile takes percent: 2.5, not 0.025"),
        (np.percentile(pooled, [97.5, 2.5]), "low and high are swapped"),
        (np.percentile(precision, [2.5, 97.5]), "this is the precision: TPR divides by TP + FN"),
        (np.percentile(few, [2.5, 97.5]), "the axes of the draws are swapped: one row per draw"),
    ]
    interval = answer.bootstrap_interval(HITS, np.random.default_rng(11), 500)
    compare("bootstrap_interval", interval, np.percentile(pooled, [2.5, 97.5]), mistakes)

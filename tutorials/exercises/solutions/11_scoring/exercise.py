import numpy as np
from scipy.optimize import linear_sum_assignment


def count_hits(detections, lesions, radius):
    distance = np.linalg.norm(detections[:, None] - lesions[None], axis=2)
    near = distance <= radius
    i, j = linear_sum_assignment(~near)
    tp = int(near[i, j].sum())
    return tp, len(detections) - tp, len(lesions) - tp


def rates(hits):
    tp, fp, fn = np.sum(hits, axis=0)
    return tp / (tp + fn), fp / len(hits), fp / (tp + fp)


def bootstrap_interval(hits, rng, resamples):
    drawn = hits[rng.integers(len(hits), size=(resamples, len(hits)))]
    tp, _, fn = np.moveaxis(drawn.sum(axis=1), 1, 0)
    return tuple(np.percentile(tp / (tp + fn), [2.5, 97.5]))

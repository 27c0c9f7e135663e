"""Grades exercise 12; the saliency's oracle is a numerical gradient."""

import numpy as np
from grading import compare, parts

from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward
from weakunet.layers.gradcheck import numerical_gradient

RNG = np.random.default_rng(12)
SCAN, W = RNG.normal(size=(4, 3, 5)), RNG.normal(size=(3, 1, 3, 3, 3))
V = np.array([1.2, -0.7, 0.5])


def _forward():
    return conv3d_forward(SCAN[None, None], W, np.zeros(3))


def _back(dz):
    return conv3d_backward(dz, SCAN[None, None], W)[0][0, 0]


def test_saliency(answer):
    def count():
        return float(V @ np.maximum(_forward()[0], 0).mean(axis=(1, 2, 3)))

    gradient = numerical_gradient(count, SCAN)
    right, z = abs(gradient), _forward()
    df = np.broadcast_to(V[:, None, None, None] / SCAN.size, z.shape)
    unweighted = np.where(z > 0, 1 / SCAN.size, 0)
    mistakes = [
        (gradient, "the sign is kept: saliency is how MUCH a voxel matters, the magnitude"),
        (np.maximum(gradient, 0), "negative gradients are cut off: take the magnitude"),
        (right * SCAN.size, "the mean's 1 / (D H W) is missing"),
        (abs(_back(df)), "the ReLU is not there: no gradient comes back where z <= 0"),
        (abs(_back(np.maximum(df, 0) * (z > 0))), "this is guided backprop: dz may be negative"),
        (abs(_back(unweighted)), "v is missing: count = v . mean(f)"),
        (abs(_back(df * np.maximum(z, 0))), "dz is multiplied with z itself: the slope is 1"),
        (gradient**2, "this is the square of the gradient: take its magnitude"),
        (abs(gradient * SCAN), "this is gradient times input; saliency is the gradient alone"),
    ]
    compare("saliency", answer.saliency(SCAN, W, V), right, mistakes, tolerance=1e-6)


def test_weighted_sum(answer):
    scan, heatmap = RNG.random((2, 3, 4)), RNG.normal(size=(2, 3, 4)) * 40
    right = 0.65 * scan / 0.9 + 0.35 * heatmap / 55
    cut, own = np.maximum(heatmap, 0), 0.65 * scan / scan.max() + 0.35 * heatmap / heatmap.max()
    mistakes = [
        (0.65 * scan + 0.35 * heatmap, "the scales are missing: the heatmap drowns the scan"),
        (0.65 * scan * 0.9 + 0.35 * heatmap * 55, "multiplied by the scales: divide"),
        (0.35 * scan / 0.9 + 0.65 * heatmap / 55, "weight and 1 - weight are swapped"),
        (0.65 * scan / 0.9 + heatmap / 55, "the heatmap's fraction is 1 - weight"),
        (0.65 * scan / 0.9 + 0.35 * heatmap, "the heatmap is not divided by its scale"),
        (0.65 * scan + 0.35 * heatmap / 55, "the scan is not divided by its scale"),
        (0.65 * scan / 55 + 0.35 * heatmap / 0.9, "the scales are swapped"),
        (0.65 * scan / 0.9 + 0.35 * cut / 55, "negative values of the heatmap are cut off"),
        (own, "each scan has its own scale: a scan without lesions gets as bright a map as others"),
    ]
    compare("weighted_sum", answer.weighted_sum(scan, heatmap, 0.65, 0.9, 55.0), right, mistakes)


def test_choose_weight(answer):
    weights = np.array([0.0, 0.25, 0.5, 0.75, 0.9])
    val = np.array([[1, 2, 1], [4, 6, 5], [6, 2, 7], [4, 5, 3], [1, 2, 0]]) / 8  # exact means
    test = np.array([[0.1, 0.3], [0.5, 0.6], [0.8, 1.0], [0.9, 0.95], [0.3, 0.2]])
    splits = np.array(["val", "test", "val", "val", "test"])
    tpr = np.empty((5, 5))
    tpr[:, splits == "val"], tpr[:, splits == "test"] = val, test
    result = answer.choose_weight(weights, tpr, list(splits))
    result = parts("choose_weight", result, "the weight, its TPR on the test scans")
    mistakes = [
        (0.75, "chosen on the TEST scans: then its TPR there is no longer a test"),
        (0.5, "chosen on all scans, or the last of equals: on validation 0.25 is first"),
        (1, "this is the weight's index, not the weight"),
        (0.9, "this is the WORST weight on validation"),
    ]
    compare("choose_weight's weight", result[0], 0.25, mistakes)
    mistakes = [
        (val[1].mean(), "this is the TPR on validation, which the choice has flattered"),
        (tpr[1].mean(), "validation scans are in it: the mean over the test scans alone"),
        (test[1].max(), "this is the best test scan's TPR: take the mean"),
        (test.max(axis=0).mean(), "this is the best of each test scan: one weight for all"),
        (test.mean(axis=1).max(), "this is the best weight's TPR on test, not the chosen one's"),
    ]
    compare("choose_weight's TPR", result[1], test[1].mean(), mistakes)

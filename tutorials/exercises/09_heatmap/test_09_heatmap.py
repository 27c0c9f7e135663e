"""Grades exercise 9; the oracles are the package's layers."""

import numpy as np
from grading import compare

from weakunet.layers.conv.conv3d import conv3d_forward
from weakunet.layers.globalpool3d import globalmax_forward, globalmean_forward
from weakunet.layers.linear import linear_forward

RNG = np.random.default_rng(9)
F, W, B = RNG.normal(size=(4, 3, 5, 6)), np.array([1.5, -0.8, 0.4, -1.3]), -3.3
WEIGHTED = W[:, None, None, None] * F  # two of the weights are negative


def _of_a_count(right):
    """Mistakes of any function that returns a count; the right one is negative here."""
    return [
        (right - B, "the bias is missing"),
        (right - 2 * B, "the bias is subtracted: it is added"),
        (max(right, 0), "an activation cuts the count off: eq. 2 has none"),
        (abs(right), "the count's sign is lost: nothing makes it positive"),
        (round(right), "the count is rounded: it is a real number"),
    ]


def test_predict_count_with_max_pooling(answer):
    right = linear_forward(globalmax_forward(F[None])[0], W, np.array([B]))[0]
    mistakes = _of_a_count(right) + [
        (W @ F.mean(axis=(1, 2, 3)) + B, "the mean is taken instead of the maximum"),
        (abs(W) @ F.max(axis=(1, 2, 3)) + B, "the weights' signs are lost"),
        (W.sum() * F.max(axis=0).mean() + B, "pooled over the wrong axis: pool over the voxels"),
        (WEIGHTED.max(axis=(1, 2, 3)).sum() + B, "the maps are weighted BEFORE the maximum"),
        (WEIGHTED.sum(axis=0).max() + B, "this is the heatmap's maximum: pool each map, then sum"),
        (W.sum() * F.max() + B, "one maximum for all maps: G gives a number per map"),
    ]
    compare("predict_count", answer.predict_count(F, W, B, "max"), right, mistakes)


def test_predict_count_with_mean_pooling(answer):
    right = linear_forward(globalmean_forward(F[None]), W, np.array([B]))[0]
    mistakes = _of_a_count(right) + [
        (abs(W) @ F.mean(axis=(1, 2, 3)) + B, "the weights' signs are lost"),
        (W @ F.sum(axis=(1, 2, 3)) + B, "the maps are summed, not averaged"),
        (W @ F.max(axis=(1, 2, 3)) + B, "the maximum is taken instead of the mean"),
        ((right - B) / 4 + B, "the sum over the maps became a mean: it is w . x"),
    ]
    compare("predict_count", answer.predict_count(F, W, B, "mean"), right, mistakes)


def test_heatmap(answer):
    right = conv3d_forward(F[None], W.reshape(1, 4, 1, 1, 1), np.zeros(1))[0, 0]
    mistakes = [
        (right / 4, "the maps are averaged: eq. 3 is a sum"),
        (np.maximum(right, 0), "negative values are cut off (that is Grad-CAM): keep them"),
        (np.tensordot(abs(W), F, 1), "the weights' signs are lost: some maps speak against"),
        (np.tensordot(W, np.maximum(F, 0), 1), "negative values of the MAPS are cut off"),
        (abs(right), "the heatmap's signs are lost"),
        (F.sum(axis=0), "the weights are missing: maps count as much as they do in eq. 2"),
        (WEIGHTED.max(axis=0), "this is the largest of the weighted maps: add them up"),
        (WEIGHTED, "the sum over the maps is missing: one heatmap, not one per map"),
    ]
    compare("heatmap", answer.heatmap(F, W), right, mistakes)


def test_count_from_heatmap(answer):
    m = WEIGHTED.sum(axis=0)
    right = W @ F.mean(axis=(1, 2, 3)) + B
    mistakes = _of_a_count(right) + [
        (np.maximum(m, 0).mean() + B, "negative voxels are left out: they speak against lesions"),
        (m[m > 0].mean() + B, "negative voxels are left out: they speak against lesions"),
        (m.sum() + B, "the heatmap is summed: the pooling was the MEAN"),
        (m.max() + B, "this would be max pooling, and even then wrong"),
        (m.mean() + B * m.size, "the bias is added for every voxel: it comes once"),
    ]
    compare("count_from_heatmap", answer.count_from_heatmap(m, B), right, mistakes)

# %% [markdown]
# # 9. From a count network to a heatmap
#
# **Question.** Nobody told the network where a lesion is, only how many there are. Why can we take
# its last layer apart and read off where they are?
#
# **You will see** the paper's equations 1 to 3 in a few lines, and which voxels a gradient reaches
# through three poolings. The picture shows where one scan's count comes from, in a small network
# trained on counts.
#
# **Takes** about 25 seconds on 2 cores, most of it training. Lesson 8 explains the training.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from weakunet.data import phantom
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.evaluation.metrics import count_hits, count_metrics
from weakunet.figures.drawing import BLUE, GREEN, RED
from weakunet.layers.globalpool3d import GlobalPool3D
from weakunet.layers.linear import linear_backward, linear_forward
from weakunet.model import WeakUNet
from weakunet.training.settings import Settings

rng = np.random.default_rng(9)

# %% [markdown]
# ## Equations 1 to 3
#
# Let f be the last feature maps of one scan, f_i the i-th. In training each is pooled to one
# number, and the count is their weighted sum (eqs. 1 and 2, no activation):
#
#     y = sum_i w_i G(f_i) + b
#
# For a heatmap, leave the pooling out and keep the weights (eq. 3):
#
#     M = sum_i w_i f_i
#
# The bias goes, too: it is the same everywhere. Nothing is cut off: a map with a negative weight
# speaks against a lesion.
#
# G may be the maximum of the map (the paper's example), its mean, or weakunet's default, the sum of
# local maxima (`lmax`): add up the largest value of each block of k x k x k voxels, and divide by a
# constant. The blocks overlap, one begins every k / 2 voxels.


# %%
def pool_by_hand(f, mode, k=4):
    """f (C, D, H, W), sizes that divide by k -> (C,)"""
    if mode != "lmax":
        return f.max(axis=(1, 2, 3)) if mode == "max" else f.mean(axis=(1, 2, 3))
    step = k // 2
    padded = np.pad(f, ((0, 0), *[(step, step)] * 3), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k, k), (1, 2, 3))
    maxima = windows[:, ::step, ::step, ::step].max(axis=(4, 5, 6))
    constant = 8 * f[0].size / k**3  # each voxel is in 8 blocks
    return maxima.sum(axis=(1, 2, 3)) / constant


f, w, b = rng.standard_normal((3, 4, 8, 12)), np.array([1.5, 0.4, -0.7]), 0.2
M = np.tensordot(w, f, axes=1)
poolings = {mode: GlobalPool3D(mode, 4, overlap=2) for mode in ("max", "mean", "lmax")}
for mode, pool in poolings.items():
    count = w @ pool_by_hand(f, mode) + b
    assert np.isclose(count, linear_forward(pool.forward(f[None]), w, np.array([b]))[0])
    print(f"{mode:4s}: y = {count:6.3f}, and the pooled heatmap plus b is", end=" ")
    print(f"{pool_by_hand(M[None], mode)[0] + b:6.3f}")

network = WeakUNet(channels=(3, 4), rng=rng, dtype=np.float64)
network.load(network.params | {"linear.w": w, "linear.b": np.array([b])})
assert np.allclose(network.heatmap(f[None])[0, 0], M)  # there, M is a 1 x 1 x 1 convolution

# %% [markdown]
# ## Equation 2 is equation 3, pooled
#
# With the mean the two numbers above agree: the mean of a sum is the sum of the means, so the count
# is the mean of the heatmap plus b. The maximum of a sum is not the sum of the maxima (each map has
# its maximum somewhere else), so the other two disagree.
#
# But in one way all three are alike. Each is a weighted sum of a map's voxels v, with weights
# a_i(v) >= 0:
#
#     G(f_i) = sum_v a_i(v) f_i(v)       max:   a = 1 at the largest voxel, 0 elsewhere
#                                        mean:  a = 1 / voxels, everywhere
#                                        lmax:  a = (blocks whose maximum is at v) / constant
#
# Put that into eq. 2, and the count becomes a sum over voxels of the terms of eq. 3, each with its
# weight:
#
#     y - b = sum_v C(v),      C(v) = sum_i a_i(v) w_i f_i(v)
#
# C says where the count comes from; M is C before the pooling has chosen. And a_i(v) w_i is nothing
# new: it is the gradient dy/df_i(v), which backward computes.


# %%
def where_from(f, w, pool, region=None):
    """Gradients df (C, D, H, W) of the count with respect to f, and C (D, H, W)."""
    x = pool.forward(f[None], region)
    dx, _, _ = linear_backward(np.ones(1, f.dtype), x, w)
    df = pool.backward(dx)[0]
    return df, (df * f).sum(axis=0)


for mode, pool in poolings.items():
    _, contributions = where_from(f, w, pool)
    assert np.isclose(contributions.sum() + b, w @ pool_by_hand(f, mode) + b)
assert np.allclose(where_from(f, w, poolings["mean"])[1], M / M.size)

# %% [markdown]
# ## A network that counts
#
# A small network on small scans, trained as `python -m weakunet.train` does it. It sees 200 scans,
# each with one number. Two things are ours: outside the region of interest (ROI, where the scan is
# above 0) all maps are 0, and only blocks that touch the ROI are added up. Their mean number in
# training is the constant of the pooling. So zeros around a scan change nothing, and the counts of
# two regions add up. (Therefore b is multiplied by the region's size, 1 on average.)

# %%
cohort = phantom.simulate_cohort("tiny", {"train": 200, "val": 30, "test": 40}, seed=0)
model = lesson.trained(cohort, Settings(epochs=10, channels=(8, 8, 8), eps=1e-6))
test = cohort["test"]
volumes = np.stack([scan.volume.array for scan in test])[:, None]
counts = np.array([scan.count for scan in test])
predicted, heatmaps = model.predict(volumes)
agreement = count_metrics(counts, predicted)
print(f"40 scans it has not seen: r {agreement['count_r']:.2f}, R2 {agreement['count_r2']:.2f};")
print(f"squared error {agreement['count_mse']:.2f}, of the mean count {counts.var():.2f}")
w, b = model.linear.params["w"], model.linear.params["b"][0]
print("w =", w.round(2), f"b = {b:.2f}")

# %% [markdown]
# ## Which voxels learn
#
# Here are its last maps on one of these scans, and the gradient of the count with respect to them,
# by each of the three poolings. The maximum sends each map's whole weight to ONE voxel: the network
# is corrected there and nowhere else. The mean gives every voxel the same tiny push, lesion or not.
# The sum of local maxima pushes the best candidate of each neighbourhood. (Where the best value is
# 0, the ReLU stops the push: lesson 4.)

# %%
chosen = int(np.argmin(abs(counts - 6)))
scan, volume = test[chosen], volumes[[chosen]]
f, region = model.features(volume)[0], model.region(volume)
poolings = {"max": GlobalPool3D("max"), "mean": GlobalPool3D("mean"), "lmax": model.global_pool}
reached, passed = {}, {}
for mode, pool in poolings.items():
    df, contributions = where_from(f, w, pool, region)
    reached[mode], passed[mode] = df != 0, (df != 0) & (f > 0)
    print(f"{mode:4s}: {reached[mode].sum()} of {f.size} values in {len(f)} maps", end=" ")
    print(f"receive a gradient, {passed[mode].sum()} of them behind an open ReLU")
bias = b * model.global_pool.size[0]
assert np.isclose(contributions.sum() + bias, predicted[chosen], rtol=1e-3)

# %% [markdown]
# ## Does the count come from the lesions?
#
# How much of the sum over C(v) lies within 3 voxels of a lesion, over all test scans? And what
# fraction of the scans' voxels is that?

# %%
near, whole, near_voxels = 0.0, 0.0, 0
for each in test:
    array = each.volume.array[None, None]
    own = where_from(model.features(array)[0], w, model.global_pool, model.region(array))[1]
    places = np.stack(np.indices(own.shape), axis=-1)[..., None, :]
    apart = np.linalg.norm(places - each.centres_zyx, axis=-1)
    inside = apart.min(axis=-1, initial=np.inf) <= 3
    near, whole = near + own[inside].sum(), whole + own.sum()
    near_voxels += inside.sum()
print(f"{near / whole:.0%} of the counts come from within 3 voxels of a lesion,")
print(f"in {near_voxels / volumes.size:.0%} of the scans' voxels")

# %% [markdown]
# ## The picture
#
# One scan, seen along z, its lesions ringed (3 voxels). Top: the scan (mean along z); the heatmap M
# (highest value along z); C, where the count comes from, a dot per voxel, the larger the more.
# Below: where a gradient arrives in any of the maps, by each of the three poolings; red where all
# of it is stopped by a ReLU.

# %%
colours = np.array([(0, 0, 0), to_rgb(RED), (1, 1, 1)])  # nothing, stopped, passes
shown = {
    f"mean along z: {scan.count} lesions, predicted {predicted[chosen]:.1f}": volume[0, 0].mean(0),
    "the heatmap M, highest along z": heatmaps[chosen, 0].max(axis=0),
    "C: where the count comes from": np.zeros(volume.shape[3:]),
}
for mode in poolings:
    arrives = np.maximum(1 * reached[mode], 2 * passed[mode]).max(axis=(0, 1))
    shown[f"{mode}: {reached[mode].sum()} of {f.size} values"] = colours[arrives]
figure, panels = plt.subplots(2, 3, figsize=(13, 9), layout="constrained")
for panel, (name, values) in zip(panels.flat, shown.items(), strict=True):
    lesson.show(panel, values, scan, name, scan.centres_zyx, GREEN)
_, y, x = np.nonzero(contributions)
_, dy, dx = scan.volume.spacing_mm
area = 600 * abs(contributions[contributions != 0])
panels[0, 2].scatter(x * dx, y * dy, area, c=BLUE, alpha=0.8, linewidths=0)
meanings = ("no gradient", "a gradient, stopped by a ReLU", "a gradient that passes")
boxes = [Patch(facecolor=c, edgecolor="black") for c in colours]
labels = [f"below: {text}" for text in meanings]
figure.legend(boxes, labels, loc="outside lower center", ncols=3, frameon=False)

hits = [
    count_hits(detect_lesions(m[0], whole_count(c)).centres_zyx, each.centres_zyx)
    for m, c, each in zip(heatmaps, predicted, test, strict=True)
]
tp, fp, fn = np.sum(hits, axis=0)
print("thresholded into as many components as predicted lesions (lesson 10), the heatmaps show")
print(f"{tp} of {tp + fn} lesions ({tp / (tp + fn):.0%}), {fp / 40:.2f} false positives per scan")
lesson.save(figure, "09_heatmap")

# %% [markdown]
# **Try.** Add 10 to b: what becomes of the count, and of the heatmap's components? Train with
# `pool="max"` in the Settings: how many dots has C now, and do they sit on lesions? Then write the
# equations yourself: exercise set `09_heatmap`.

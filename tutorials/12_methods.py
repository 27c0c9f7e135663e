# %% [markdown]
# # 12. The six methods of Table 1
#
# **Question.** A network has learned to count. There is more than one way to ask it WHERE, and one
# that needs no network. Which of them finds the lesions?
#
# **You will see** two small networks trained from counts alone, the maps of all six methods of
# Table 1 in the same slice, and the one number of method (f) that must not be chosen on the test
# scans. The picture is the paper's Fig. 3, on a phantom.
#
# **Takes** about 40 seconds on 2 cores: two trainings. Lesson 9 explains heatmaps, lesson 10
# thresholds, lesson 11 the scores.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from weakunet.compare import baselines
from weakunet.compare.methods import METHODS, PAPER
from weakunet.data.phantom import simulate_cohort
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.predict_scan import from_network, predict_scan, to_network
from weakunet.evaluation import metrics
from weakunet.evaluation.froc import froc_by_count
from weakunet.evaluation.metrics import count_hits
from weakunet.figures.drawing import ABOVE, busiest_slices, line_style, show_slice
from weakunet.figures.marks import draw_rings
from weakunet.layers.enlarge3d import enlarge3d
from weakunet.training.settings import Settings

# %% [markdown]
# ## Two networks, one cohort
#
# Both have the same encoder. The **FCN** has an upsampling path, so its last maps are as large as
# the scan. The **coarse** network has none. Its last maps are 4 times smaller along each axis, and
# those are pooled. It is cheaper, so it gets more epochs.
#
# To be quick we take 8 maps on every level and 300 training scans, and train each network once.
# `python -m weakunet.compare` takes up to 32 maps and 800 scans, trains on five cohorts, and
# averages over flips of each scan. The price of being quick: the maps are rougher, and the
# intervals below say how other TEST scans would change the rates, not how another training would.

# %%
N = {"train": 300, "val": 30, "test": 30}
cohort = simulate_cohort("tiny", N, seed=12)
small = {"seed": 12, "channels": (8, 8, 8), "eps": 1e-6}
print("FCN")
fcn = lesson.trained(cohort, Settings(epochs=9, **small))
print("coarse: without the upsampling path")
coarse = lesson.trained(cohort, Settings(epochs=12, **small), upsampling=False)

test, val = cohort["test"], cohort["val"]
true = np.array([scan.count for scan in test])
counts = {}
for name, model in (("fcn", fcn), ("coarse", coarse)):
    counts[name] = np.array([predict_scan(model, scan.volume)[0] for scan in test])
    found = metrics.count_metrics(true, counts[name])
    print(f"{name}: test scans R2 {found['count_r2']:.2f}, r {found['count_r']:.2f}")

# %% [markdown]
# ## Asking the gradient: (b) and (c)
#
# A **saliency map** (Simonyan et al. 2014) is the magnitude of the gradient of the count with
# respect to the image: how much does the count change with this voxel? It takes one backward pass,
# all the way to the image. (b) uses the coarse network, (c) the FCN.


# %%
def saliency_by_hand(model, scan):
    placed, _ = to_network(model, scan.volume)  # the region's box, padded to sizes that divide
    model.forward(placed)
    dimage = model.backward(np.ones(1, np.float32), to_image=True)  # d count / d image
    return from_network(model, np.abs(dimage), scan.volume)


for model in (fcn, coarse):
    theirs = baselines.saliency(model, test[0].volume)
    assert np.array_equal(saliency_by_hand(model, test[0]), theirs)

# %% [markdown]
# ## Asking the last maps: (d) and (e)
#
# The count is w . G(f) + b, with the pooled last maps G(f). Without the pooling, the same weights
# give a map, M = sum w_i f_i (eq. 3; lesson 9). (e) is the M of the FCN. (d) is the M of the coarse
# network, upsampled to the scan's size by linear interpolation. It has one number for each 4 x 4 x
# 4 voxels, and many lesions are no larger than that. (The network sees the box of the region of
# interest, padded to sizes that divide.)

# %%
for name, model in (("(e)", fcn), ("(d)", coarse)):
    f = model.features(to_network(model, test[0].volume)[0])
    print(f"M of {name} is {f.shape[2:]}, the scan {test[0].volume.array.shape}")

# %% [markdown]
# ## Not asking at all: (a), and both at once: (f)
#
# (a) is the prepared scan itself: lesions are bright. (f) is a weighted sum of (e) and (a),
#
#     weight M / scale + (1 - weight) S
#
# M has no unit and S is in [0, 1], so M is divided by the mean of its maxima over the validation
# scans. And the weight? One tries some and takes the best. The best on WHICH scans? Chosen on the
# test scans, it would be fitted to them, and its TPR there would no longer be a test. So it is
# chosen on the validation scans. (They need lesion centres for that. The networks never saw any.)
# A weight of 1 leaves the intensities out. Of equally good weights we take the largest.

# %%
heatmaps = {
    split: [predict_scan(fcn, scan.volume) for scan in scans]
    for split, scans in (("val", val), ("test", test))
}
scale = float(np.mean([heatmap.max() for _, heatmap in heatmaps["val"]]))


def tpr_of_weight(weight, split):
    """TPR of (f), pooled over the lesions of the split, each scan cut at its own count."""
    found = total = 0
    for scan, (count, heatmap) in zip(cohort[split], heatmaps[split], strict=True):
        both = weight * (heatmap / scale) + (1 - weight) * scan.volume.array
        centres = detect_lesions(both, whole_count(count)).centres_zyx
        found += count_hits(centres, scan.centres_zyx)[0]
        total += scan.count
    return found / total


weights = baselines.WEIGHTS
tpr = {split: np.array([tpr_of_weight(w, split) for w in weights]) for split in ("val", "test")}
chosen = np.flatnonzero(tpr["val"] == tpr["val"].max())[-1]
print(f"chosen on validation: weight {weights[chosen]:.2f}, TPR there {tpr['val'][chosen]:.1%}")
print(f"on the test scans it has {tpr['test'][chosen]:.1%}; the best weight THERE", end=" ")
print(f"would have shown {tpr['test'].max():.1%}")

# %% [markdown]
# ## The table
#
# Each map is cut into as many components as its own network counts; (a) and (f) take the FCN's
# count. The last columns use the true count instead: they judge the map alone, without the error of
# the count.
#
# (a) may mark more places than the FCN counts: the highest 1 % of a prepared scan is trimmed to 1,
# and no threshold can separate voxels of equal value (lesson 10: ties).

# %%
maps = {name: [] for name in METHODS}
for scan, (_, heatmap) in zip(test, heatmaps["test"], strict=True):
    maps["intensities"].append(scan.volume.array)
    maps["saliency"].append(baselines.saliency(coarse, scan.volume))
    maps["saliency_fcn"].append(baselines.saliency(fcn, scan.volume))
    maps["regression"].append(predict_scan(coarse, scan.volume)[1])
    maps["regression_fcn"].append(heatmap)
    both = baselines.combine(heatmap, scan.volume.array, weights[chosen], scale)
    maps["intensities_regression_fcn"].append(both)
own_counts = {name: counts["fcn"] for name in METHODS}
own_counts["saliency"] = own_counts["regression"] = counts["coarse"]


def marks_of(name, counts):
    """Centres of a method's detections, an array per test scan, thresholded at these counts."""
    pairs = zip(maps[name], counts, strict=True)
    return [detect_lesions(own, whole_count(count)).centres_zyx for own, count in pairs]


def score(marks):
    """Rates over the test scans."""
    pairs = zip(marks, test, strict=True)
    return metrics.detection_metrics([count_hits(own, scan.centres_zyx) for own, scan in pairs])


marks = {name: marks_of(name, own_counts[name]) for name in METHODS}
table = {name: score(marks[name]) for name in METHODS}
print(f"{'':36}TPR %  [95 % CI]     FPav  FDR %   true count: TPR % / FPav   paper: TPR % / FPav")
for name, row in table.items():
    low, high = row["tpr_ci95"]
    at_true = score(marks_of(name, true))
    print(
        f"{METHODS[name]:36}{100 * row['tpr']:5.1f}  [{100 * low:4.1f}, {100 * high:4.1f}]"
        f"{row['fp_per_scan']:7.2f}{100 * row['fdr']:7.1f}"
        f"{100 * at_true['tpr']:16.1f} / {at_true['fp_per_scan']:.2f}"
        f"{PAPER[name][0]:22.1f} / {PAPER[name][1]}"
    )

# %% [markdown]
# Compare the order of the methods with the paper's, not the numbers: these are simulated scans.
# Does (e) beat (a), though both are cut at the same count? Does the upsampling path pay, (e)
# against (d)? And does (f) improve on (e), as in the paper?
#
# ## Why is (d) so poor?
#
# Is it the resolution? Then no map with one number for 4 x 4 x 4 voxels could do better. Make the
# ideal one: a soft spot on each lesion, averaged over each cell of 4 x 4 x 4 voxels, upsampled as
# (d) is, and cut at the true count.


# %%
def ideal_coarse_map(scan, m=4):
    spots = np.zeros(scan.volume.array.shape)
    for centre in scan.centres_zyx:
        spots[tuple(np.clip(np.rint(centre).astype(int), 0, np.array(spots.shape) - 1))] = 1
    d, h, w = (n // m for n in spots.shape)
    cells = ndimage.gaussian_filter(spots, 0.7).reshape(d, m, h, m, w, m).mean(axis=(1, 3, 5))
    return enlarge3d(cells[None, None], m)[0, 0]


maps["ideal"] = [ideal_coarse_map(scan) for scan in test]
ideal, at_true = (score(marks_of(name, true)) for name in ("ideal", "regression"))
print(f"at the true count the ideal coarse map finds {ideal['tpr']:.1%}, (d) {at_true['tpr']:.1%}")
distances = [
    cdist(centres, scan.centres_zyx).min(axis=1)
    for centres, scan in zip(marks_of("regression", true), test, strict=True)
    if scan.count > 0
]
far = np.concatenate(distances)
print(f"from a detection of (d) to the nearest lesion: {np.median(far):.1f} voxels (median)")

# %% [markdown]
# So it is not the resolution. A cell of the coarse network sees far beyond its own voxels (lesson
# 5), and nothing in a count says WHICH of the cells that see a lesion should respond. One beside it
# counts just as well. The FCN may respond beside the lesion, too, but there the next voxel is near.
#
# ## What are the false positives?
#
# A false positive within 3 voxels of a lesion is a SECOND mark on a lesion that is already matched.
# Nothing in the training asks for one peak per lesion. A lesion with two peaks takes the place of a
# fainter one, which is then missed. In the intensities a lesion is one hill, which can join them.


# %%
def second_marks(marks):
    """False positives over the test scans, and how many of them lie beside a lesion."""
    wrong = beside = 0
    for centres, scan in zip(marks, test, strict=True):
        pairs = metrics.match_detections(centres, scan.centres_zyx)
        left = np.delete(centres, [i for i, _ in pairs], axis=0)
        wrong += len(left)
        beside += (cdist(left, scan.centres_zyx) <= metrics.RADIUS_VOX).any(axis=1).sum()
    return wrong, beside


for name, title in METHODS.items():
    wrong, beside = second_marks(marks[name])
    print(f"{title:36}{wrong:3d} false positives, {beside} of them second marks")

# %% [markdown]
# ## The picture
#
# The maps in one slice (the highest value of three neighbouring slices), each in its own range. The
# true lesions are ringed, and what reaches the method's threshold is outlined. Right: FROC, where
# the count is multiplied by factors, with a mark at the predicted count; and the weight of (f).

# %%
i = np.argsort(true, kind="stable")[4 * len(test) // 5]  # a scan with more lesions than most
scan = test[i]
z = busiest_slices(scan.centres_zyx, len(scan.volume.array), 1)[0]
near = slice(max(0, z - 1), z + 2)
figure, panels = plt.subplots(2, 4, figsize=(16, 8.4), layout="constrained")
for panel, (name, title) in zip(panels[:, :3].flat, METHODS.items(), strict=True):
    own = maps[name][i]
    threshold = detect_lesions(own, whole_count(own_counts[name][i])).threshold
    shown, limits = own[near].max(axis=0), np.percentile(own, [1, 99.9])
    colours = "gray" if name == "intensities" else "inferno"
    drawn, dy, dx = show_slice(panel, shown, scan.volume.spacing_mm, *limits, colours)
    above = (shown >= threshold).astype(float)
    panel.contour(above, [0.5], colors=ABOVE, linewidths=1.8, extent=drawn.get_extent())
    draw_rings(panel, scan.centres_zyx, z, dy, dx)
    tp, fp = table[name]["tpr"], table[name]["fp_per_scan"]
    panel.set(title=f"{title}\nTPR {tp:.0%}, FPav {fp:.1f}", xlabel="x (mm)", ylabel="y (mm)")

froc, sweep = panels[:, 3]
lesions = [scan.centres_zyx for scan in test]
for k, (name, title) in enumerate(METHODS.items()):
    curve = froc_by_count(maps[name], own_counts[name], lesions)
    points = [(point["fp_per_scan"], 100 * point["tpr"]) for point in curve]
    froc.plot(*np.transpose(points), **line_style(k, marker=""))
    froc.plot(
        table[name]["fp_per_scan"], 100 * table[name]["tpr"], **line_style(k), label=title[:3]
    )
froc.set(title="FROC; marks: at the predicted count", xlim=(0, 8), ylim=(0, 100))
froc.set(xlabel="FPav (false positives per scan)", ylabel="TPR (% of the lesions)")
froc.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.12))
for k, (split, values) in enumerate(tpr.items()):
    sweep.plot(weights, 100 * values, **line_style(k, marker=""), label=f"{split} scans")
    sweep.plot(weights[chosen], 100 * values[chosen], **line_style(k, marker="*", markersize=15))
sweep.set(title="(f); stars: chosen on validation", ylabel="TPR (% of the lesions)")
sweep.set(xlabel="weight: 0 is (a), 1 is (e)")
sweep.legend(frameon=False)
for panel in (froc, sweep):
    panel.grid(alpha=0.3)

best = max(METHODS, key=lambda name: table[name]["tpr"])
low, high = table[best]["tpr_ci95"]
print(f"most lesions are found by {METHODS[best]}: {table[best]['tpr']:.1%}", end=" ")
print(f"[{low:.1%}, {high:.1%}] at {table[best]['fp_per_scan']:.2f} false positives per scan")
lesson.save(figure, "12_methods")

# %% [markdown]
# **Try.** Train with another seed and compare both tables: which order stays? Train with
# `channels=(8, 16, 32)`, which takes twice as long: which weight does validation choose then? Then
# write the saliency, the weighted sum (its weight is on the scan there) and the choice yourself:
# exercise set `12_methods`.

# %% [markdown]
# # 11. Scoring detections
#
# **Question.** A method marks places in a scan, an expert has marked the lesions. How many are
# found, how many of the marks are wrong, and how sure may you be of these numbers?
#
# **You will see** two ways of matching that lose hits, the rates of the paper's Table 1, what an
# average hides, and an interval made by drawing scans again. The picture shows the matching, the
# curve of Fig. 3 and the interval.
#
# **Takes** about 15 seconds on 2 cores. Lesson 10 explains how a map and a count become detections.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from weakunet.data import phantom
from weakunet.detection.detect import detect_lesions, fill_outside, whole_count
from weakunet.evaluation import froc, metrics
from weakunet.figures.drawing import LINES, busiest_slices, show_slice
from weakunet.figures.marks import draw_marks, draw_rings, judge_detections, mark_handles

rng = np.random.default_rng(11)

# %% [markdown]
# ## Who found whom?
#
# A detection finds a lesion if it lies within 3 voxels of its centre (the paper's radius; we take
# exactly 3 as within). That is not yet a score: two detections may lie beside one lesion, and one
# detection between two lesions. So they are **matched one to one**, with as many pairs within the
# radius as possible. Matched: a true positive (TP). A detection left over: a false positive (FP). A
# lesion left over: a false negative (FN).
#
# By hand: one detection after another asks the lesions within its reach. A free lesion accepts. A
# taken one asks its own detection to move to another lesion. If that can, the newcomer is accepted.


# %%
def match_by_hand(near):
    """near (n, m) bool: detection i reaches lesion j -> dict lesion: its detection."""
    detection_of = {}

    def settle(i, asked):
        for j in np.flatnonzero(near[i]).tolist():
            if j not in asked:
                asked.add(j)
                if j not in detection_of or settle(detection_of[j], asked):
                    detection_of[j] = i
                    return True
        return False

    for i in range(len(near)):
        settle(i, set())
    return detection_of


# %% [markdown]
# ## Two ways that lose hits
#
# **Nearest first**: take the closest pair, then the closest of what is left, and so on. A close
# pair may use up the only partner of another. **Assign first, apply the radius later**: find the
# one-to-one assignment with the smallest total distance, then drop the pairs beyond the radius. A
# detection far away from everything then pulls the others off their lesions. The right order: the
# radius says which pairs are possible at all; then make as many pairs as possible.


# %%
def nearest_first(distance, radius):
    pairs = []
    for i, j in zip(*np.unravel_index(distance.argsort(axis=None), distance.shape), strict=True):
        if distance[i, j] <= radius and not any(i == a or j == b for a, b in pairs):
            pairs.append((i, j))
    return len(pairs)


def assign_first(distance, radius):
    i, j = linear_sum_assignment(distance)  # the smallest total distance
    return (distance[i, j] <= radius).sum()


for way, detections, lesions in (  # all on one line
    (nearest_first, [1.8, 4.8], [0, 3]),
    (assign_first, [2.9, 100], [0, 3]),
):
    distance = abs(np.subtract.outer(detections, lesions))
    wrong, right = way(distance, 2), len(match_by_hand(distance <= 2))
    print(f"{way.__name__} of detections {detections}, lesions {lesions}, radius 2:", end=" ")
    print(f"{wrong} of {right} hits")

# %% [markdown]
# How often does it matter? Try 1000 crowded random scans. `metrics.match_detections` asks scipy for
# the one-to-one matching of least cost, where a pair beyond the radius costs more than all pairs
# within it together. So it makes as many hits as possible, with the smallest total distance.

# %%
lost = {nearest_first: 0, assign_first: 0}
for _ in range(1000):
    detections, lesions = rng.uniform(0, 10, (6, 3)), rng.uniform(0, 10, (5, 3))
    distance = cdist(detections, lesions)
    right = len(metrics.match_detections(detections, lesions, radius=3))
    assert right == len(match_by_hand(distance <= 3))
    for way in lost:
        lost[way] += way(distance, 3) < right
print("by hand and weakunet: as many hits in each of 1000 random scans")
for way, number in lost.items():
    print(f"{way.__name__} loses hits in {number} of them")

# %% [markdown]
# ## Two methods to score
#
# Neither of them learns. **Brightness**: the scan, blurred a little. **Spots**: a narrow blur
# minus a wide one (lesson 2), which is bright where something small is. Each map is thresholded at
# the TRUE count of its scan, so that we score the maps and nothing else.

# %%
scans = phantom.simulate_cohort("standard", {"test": 40}, seed=11)["test"]
counts = [scan.count for scan in scans]
maps = {"brightness": [lesson.blurred(scan, 0.3) for scan in scans], "spots": []}
for scan in scans:
    spots = lesson.blurred(scan, 0.5) - lesson.blurred(scan, 1.2)
    maps["spots"].append(fill_outside(spots, scan.volume.array > 0.05))


def hits_of(maps, factor=1):
    """(S, 3): TP, FP, FN of every scan, thresholded at `factor` times its count."""
    rows = []
    for scan, own in zip(scans, maps, strict=True):
        found = detect_lesions(own, whole_count(factor * scan.count)).centres_zyx
        rows.append(metrics.count_hits(found, scan.centres_zyx))
    return np.array(rows)


hits = {name: hits_of(own) for name, own in maps.items()}
print(f"{len(scans)} scans, {sum(counts)} lesions; {counts.count(0)} scans have none")
for name, own in hits.items():
    print(f"{name}: TP, FP, FN = {own.sum(axis=0)}")

# %% [markdown]
# ## The rates of Table 1
#
#     TPR = sum TP / sum (TP + FN)    FPav = sum FP / scans    FDR = sum FP / sum (TP + FP)
#
# TPR (sensitivity) divides by the lesions, FDR (1 - precision) by the detections. There is no
# specificity: nobody can count the places where rightly nothing was marked. With as many detections
# as lesions, FP = FN, and FDR tells nothing new: it is 1 - TPR. They differ only where the count is
# wrong (or no threshold meets it).


# %%
def rates(hits):
    tp, fp, fn = hits.sum(axis=0)
    return tp / (tp + fn), fp / len(hits), fp / (tp + fp)


for name, own in hits.items():
    ours, theirs = rates(own), metrics.detection_metrics(own)
    assert np.allclose(ours, [theirs[key] for key in ("tpr", "fp_per_scan", "fdr")])
    print(f"{name}: TPR {ours[0]:.1%}, FPav {ours[1]:.2f}, FDR {ours[2]:.1%}")

# %% [markdown]
# ## What an average hides
#
# **Over lesions or over scans?** The TPR above pools all lesions, so a scan with 20 of them weighs
# 20 times as much as a scan with one. The mean of the scans' own TPR weighs scans equally, and says
# something else. (In a scan with one lesion only ONE place is marked, the highest of the map. If
# that is the ventricle, the scan's TPR is 0.)
#
# **Scans without lesions** have no TPR, but they count in FPav. Add 40 of them in which nothing is
# marked: TPR stays the same, and FPav is halved. The FPav of two papers can be compared only if
# their scans can.

# %%
tp, fp, fn = hits["spots"].T
some = tp + fn > 0
per_scan = (tp[some] / (tp + fn)[some]).mean()
assert np.isclose(per_scan, metrics.detection_metrics(hits["spots"])["tpr_per_scan"])
print(f"spots, TPR over lesions {rates(hits['spots'])[0]:.1%}, over scans {per_scan:.1%}")
diluted = np.concatenate([hits["spots"], np.zeros((40, 3), int)])
for name, own in (("as they are", hits["spots"]), ("with 40 empty scans", diluted)):
    print(f"{name}: TPR {rates(own)[0]:.1%}, FPav {rates(own)[1]:.2f}")

# %% [markdown]
# ## FROC: many thresholds
#
# One threshold gives one point. Multiply each count by a factor, and the same maps give a curve of
# TPR against FPav (free-response ROC, the paper's Fig. 3): more lesions found for more false
# positives. Does it end at 100 %? No: as the threshold falls, the components grow and merge. A
# large component has one centre, however many lesions it covers.

# %%
curves = {
    name: froc.froc_by_count(own, counts, [scan.centres_zyx for scan in scans])
    for name, own in maps.items()
}
for point in curves["spots"]:
    if point["scale"] in (0.5, 1, 2):
        tpr, fp_per_scan, _ = rates(hits_of(maps["spots"], point["scale"]))
        assert np.isclose(tpr, point["tpr"]) and np.isclose(fp_per_scan, point["fp_per_scan"])
        print(f"{point['scale']} x the count: TPR {tpr:.1%}, FPav {fp_per_scan:.2f}")

# %% [markdown]
# The other sweep takes ONE threshold for all scans (`froc_by_threshold`). Mind its end: some tools
# leave out the lowest score. Here are a lesion with score 0.3 and a false positive with 0.9. Only
# the last point of the curve shows that the lesion is found.

# %%
heatmap = np.zeros((1, 9, 9))
heatmap[0, 2, 2], heatmap[0, 6, 6] = 0.9, 0.3
end = froc.froc_by_threshold([heatmap], [np.array([[0, 6, 6]])])
print([(point["threshold"], point["tpr"], point["fp_per_scan"]) for point in end])
assert end[-1]["tpr"] == 1

# %% [markdown]
# ## How sure?
#
# With other patients, the numbers would differ. You have no others, so draw as many scans as you
# have from your own, WITH replacement, and compute the rate. Do that 2000 times. The middle 95 % of
# the rates is the interval (a percentile bootstrap). Draw scans, not lesions: the lesions of one
# scan share its ventricle, its noise and its threshold. If you draw lesions one by one, as if each
# were a patient, the interval is too narrow.


# %%
def resampled_tpr(hits, seed=0, resamples=2000):
    draws = np.random.default_rng(seed).integers(len(hits), size=(resamples, len(hits)))
    tp, _, fn = np.moveaxis(hits[draws].sum(axis=1), 1, 0)
    return tp / (tp + fn)


by_scans = {name: resampled_tpr(own) for name, own in hits.items()}
intervals = {name: np.percentile(values, [2.5, 97.5]) for name, values in by_scans.items()}
for name, interval in intervals.items():
    assert np.allclose(interval, metrics.detection_metrics(hits[name])["tpr_ci95"])
    print(f"{name}: TPR {rates(hits[name])[0]:.1%}, 95 % [{interval[0]:.1%}, {interval[1]:.1%}]")

tp, _, fn = hits["spots"].sum(axis=0)
lesions_one_by_one = np.repeat([[1, 0, 0], [0, 0, 1]], [tp, fn], axis=0)  # every lesion a "scan"
by_lesions = resampled_tpr(lesions_one_by_one)
low, high = np.percentile(by_lesions, [2.5, 97.5])
print(f"spots, if {tp + fn} lesions were drawn one by one: [{low:.1%}, {high:.1%}], too narrow")

# %% [markdown]
# **Is spots better than brightness?** Both saw the same scans, and a scan may be hard for both. So
# compare them draw by draw: take the same draws for both (here: the same seed), the difference of
# the two rates, and its interval. If 0 lies outside, the difference is more than luck.

# %%
difference = by_scans["spots"] - by_scans["brightness"]
low, high = np.percentile(difference, [2.5, 97.5])
print(f"TPR of spots minus brightness, 95 % [{low:.1%}, {high:.1%}]")

# %% [markdown]
# ## The picture
#
# Left: detections in a slice and its neighbours, matched; lesions are ringed at 3 voxels. Middle:
# FROC, with the points at the true count and their intervals. Right: the rates of 2000 draws.

# %%
figure, panels = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
scan, own = max(zip(scans, maps["spots"], strict=True), key=lambda pair: pair[0].count)
z = busiest_slices(scan.centres_zyx, len(scan.volume.array), 1)[0]
_, dy, dx = show_slice(panels[0], scan.volume.array[z], scan.volume.spacing_mm)
draw_rings(panels[0], scan.centres_zyx, z, dy, dx)
labels = detect_lesions(own, scan.count).labels
judged, _ = judge_detections(labels, scan.centres_zyx, scan.volume.spacing_mm)
draw_marks(panels[0], judged, z, dy, dx)
panels[0].set(title=f"spots, slices {z - 1} to {z + 1}", xlabel="x (mm)", ylabel="y (mm)")
panels[0].legend(handles=mark_handles(judged), loc="upper center", bbox_to_anchor=(0.5, -0.15))

for (name, curve), (colour, line, marker) in zip(curves.items(), LINES, strict=False):
    x, y = np.array([(point["fp_per_scan"], point["tpr"]) for point in curve]).T
    panels[1].plot(x, 100 * y, color=colour, linestyle=line, marker=".", label=name)
    tpr, fp_per_scan, _ = rates(hits[name])
    bar = np.abs(intervals[name] - tpr)[:, None]
    mark = {"color": colour, "marker": marker, "markersize": 10, "capsize": 4}
    panels[1].errorbar(fp_per_scan, 100 * tpr, 100 * bar, **mark)
panels[1].set(title="FROC; large marker: at the true count", ylim=(0, 100), xlim=(0, None))
panels[1].set(xlabel="FPav (false positives per scan)", ylabel="TPR (% of the lesions)")
panels[1].legend(frameon=False)
panels[1].grid(alpha=0.3)

bins = np.arange(0.15, 0.85, 0.02)
drawn = {f"{name}, scans drawn": values for name, values in by_scans.items()}
drawn["spots, lesions drawn: too narrow"] = by_lesions
for (name, values), (colour, line, _) in zip(drawn.items(), LINES, strict=False):
    panels[2].hist(100 * values, 100 * bins, histtype="step", color=colour, ls=line, label=name)
panels[2].set(title="the TPR of 2000 draws", xlabel="TPR (% of the lesions)")
panels[2].set_ylabel("draws")
panels[2].legend(frameon=False, loc="upper left")

tpr = {name: rates(own)[0] for name, own in hits.items()}
print(f"TPR at the true count: brightness {tpr['brightness']:.1%}, spots {tpr['spots']:.1%};")
print(f"the difference is at least {100 * low:.1f} points in 97.5 % of the draws")
lesson.save(figure, "11_scoring")

# %% [markdown]
# **Try.** Match with radius 2 and 4 and see how far the rates move: a TPR without its radius means
# nothing. Then pass `spacing_mm` to `match_detections`: is 3 mm stricter than 3 voxels? Write the
# matching, the rates and the interval yourself: exercise set `11_scoring`.

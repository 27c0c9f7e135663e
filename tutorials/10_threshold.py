# %% [markdown]
# # 10. The threshold that leaves as many components as were counted
#
# **Question.** The network says "five lesions" and returns a heatmap. At which level must the map
# be cut to leave five components? And why may one not search for that level by bisection?
#
# **You will see** a bisection that ends at the wrong one of several levels, and the union-find
# sweep that follows the number of components through all levels at once. The picture shows what the
# two find in the same scan.
#
# **Takes** about 5 seconds on 2 cores. Lesson 9 explains where the heatmap comes from.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba
from scipy import ndimage

from weakunet.data import phantom
from weakunet.detection import detect
from weakunet.evaluation.metrics import count_hits
from weakunet.figures.drawing import BLUE, GREEN, LINES

# %% [markdown]
# ## Islands in a falling sea
#
# First in one dimension. The heatmap is a landscape, the threshold is the level of the sea, and
# what stands above the water forms islands. An island begins wherever land follows water.


# %%
def islands(land, level):
    dry = np.append(False, land >= level)
    return int((dry[1:] & ~dry[:-1]).sum())


t = np.arange(0, 60, 0.25)
hills = [(10, 2, 0.5), (17, 2, 0.42), (24, 2, 0.34), (17, 9, 0.45), (41, 2, 0.4), (51, 2, 0.33)]
land = sum(height * np.exp(-0.5 * ((t - middle) / width) ** 2) for middle, width, height in hills)
levels = np.sort(land)[::-1]
numbers = np.array([islands(land, level) for level in levels])
changes = np.flatnonzero(np.diff(numbers, prepend=0))
print("islands as the sea falls:", *(f"{numbers[i]} (from {levels[i]:.2f} on)" for i in changes))

# %% [markdown]
# The number rises where a hill appears. It falls where two islands merge, at the pass between them.
# It is NOT monotone. And it is a difference of two counts:
#
#     islands = peaks above the water - passes above the water
#
# (A valley between two peaks is a pass once it is dry.) The sweep below rests on this.

# %%
peaks = land[1:-1][(land[1:-1] > land[:-2]) & (land[1:-1] > land[2:])]
passes = land[1:-1][(land[1:-1] < land[:-2]) & (land[1:-1] < land[2:])]
by_difference = [(peaks >= level).sum() - (passes >= level).sum() for level in levels]
inside = levels > max(land[0], land[-1])  # the shores at the map's two ends are no passes
assert np.array_equal(np.array(by_difference)[inside], numbers[inside])

# %% [markdown]
# ## Bisection
#
# Halve the range. Too few islands: lower the sea. Too many: raise it. That is right if the number
# can only grow as the sea falls. Here it ends at a level with three islands, and it is the wrong
# level: one of the islands is the three highest hills, merged.


# %%
def bisect(number_at, low, high, count, most=40):
    """The levels tried, each with its number; the last one is the answer."""
    tried = []
    while len(tried) < most and (not tried or tried[-1][1] != count):
        level = (low + high) / 2
        tried.append((level, number_at(level)))
        low, high = (low, level) if tried[-1][1] < count else (level, high)
    return tried


first = levels[np.argmax(numbers >= 3)]
for level, number in bisect(lambda level: islands(land, level), 0, land.max(), 3):
    print(f"bisection tries {level:.2f}: {number} islands")
print(f"the sea falls: the first level with 3 islands is {first:.2f}")
halved = level

# %% [markdown]
# ## A heatmap in three dimensions
#
# So that this lesson needs no training, we take the spot filter of lesson 2 as the heatmap: a
# narrow Gaussian blur of the scan minus a wide one. A voxel has 26 neighbours, which touch it by a
# face, an edge or a corner.


# %%
def spot_map(scan):
    return lesson.blurred(scan, 0.6) - lesson.blurred(scan, 1.2)


scans = phantom.simulate_cohort("tiny", {"test": 30}, seed=3)["test"]
scan = scans[2]
heatmap = spot_map(scan)
print(f"scan {heatmap.shape}: {scan.count} lesions, {np.unique(heatmap).size} different values")

# %% [markdown]
# ## All levels at once, by union-find
#
# Let the sea fall voxel by voxel, from the highest down. A new voxel is a new island: one more.
# Then look at those of its neighbours that are already dry. If one belongs to another island, the
# two merge: one fewer. If it belongs to the same island, a loop closes and nothing changes. (A
# voxel that only widens an island is one more and one fewer.)
#
# To which island does a voxel belong? `parent[v]` points from a voxel to another one of its
# island, and so on up to the root, which points to itself. Two voxels are on the same island if
# they have the same root. Merging two islands is one assignment.


# %%
def find_root(parent, v):
    while parent[v] != v:
        parent[v] = v = parent[parent[v]]  # and shorten the path for the next search
    return v


def components_by_hand(heatmap):
    """dict: level, from the highest down -> number of components of the voxels >= level"""
    padded = np.pad(heatmap, 1, constant_values=-np.inf)
    steps = (np.argwhere(np.ones((3, 3, 3))) - 1) @ (padded[0].size, padded[0, 0].size, 1)
    values, parent, number, numbers = padded.ravel(), {}, 0, {}
    for v in np.argsort(-values, kind="stable")[: heatmap.size].tolist():
        parent[v] = v
        number += 1
        for other in (steps + v).tolist():
            if other in parent and find_root(parent, v) != find_root(parent, other):
                parent[find_root(parent, v)] = find_root(parent, other)
                number -= 1
        numbers[values[v]] = number  # of equal voxels, the last one decides
    return numbers


# %% [markdown]
# The library (`weakunet/detection/detect.py`) does the same for thousands of voxels at a time,
# without a loop over voxels. It leaves out the lowest level, at which everything is dry. The oracle
# for both is scipy, which labels the components of one level. At 100 levels and more it must agree.


# %%
def number_at(heatmap, level):
    return ndimage.label(heatmap >= level, detect.CONNECTIVITY)[1]


by_hand = components_by_hand(heatmap)
library = {}
for some_levels, their_numbers in detect.component_numbers(heatmap):  # a chunk at a time
    library |= zip(some_levels.tolist(), their_numbers.tolist(), strict=True)
lowest = heatmap.min()
assert library == {level: number for level, number in by_hand.items() if level > lowest}
asked = list(by_hand)[:: len(by_hand) // 100]
assert [number_at(heatmap, level) for level in asked] == [by_hand[level] for level in asked]

series = np.array(list(by_hand.values()))
rises, falls = (np.diff(series, prepend=0) > 0).sum(), (np.diff(series) < 0).sum()
print(f"{len(series)} levels: the number rises {rises} times, falls {falls}; most: {series.max()}")

# %% [markdown]
# ## The first level
#
# Several levels leave the right number of components; the paper does not say which to take. We take
# the first one from the highest down. There the components are the map's highest peaks, not yet
# merged. A new voxel adds at most one component, so without ties no number is skipped.


# %%
def first_level(numbers, count):
    return next(level for level, number in numbers.items() if number >= count)


assert np.diff(series).max() == 1
for count in range(1, series.max() + 1):
    assert detect.threshold_for_count(heatmap, count) == (first_level(by_hand, count), count)

tried = bisect(lambda level: number_at(heatmap, level), lowest, heatmap.max(), scan.count)
sweep = first_level(by_hand, scan.count)
for name, level in (("sweep", sweep), ("bisection", tried[-1][0])):
    sizes = np.sort(detect.components_above(heatmap, level).volumes_vox)[::-1]
    print(f"{name}: level {level:.4f}, components of {sizes} voxels")
print(f"{(series == scan.count).sum()} levels leave {scan.count} components, the sweep's first")

# %% [markdown]
# ## Ties
#
# A level is a VALUE: all voxels that have it come out of the water together. Take the scan itself
# as the heatmap (method (a) of the paper's Table 1). Preprocessing has trimmed its highest values,
# so at its first level many voxels are exactly 1, and there is more than one component from the
# start. A smaller count is impossible: the library takes the nearest possible one.
#
# Three more decisions: the lowest value is never a level (a map can be 0 nearly everywhere, and 0
# is background); a count of 0 means no detection; and so does a constant map.

# %%
image = scan.volume.array
crowd, start = (image == 1).sum(), number_at(image, 1)
print(f"{crowd} voxels of the scan are exactly {image.max():.1f}: {start} components at once")
print(f"asked for 1 component, the library returns {detect.threshold_for_count(image, 1)[1]}")
assert detect.threshold_for_count(image, 1) == (1.0, start)
assert detect.threshold_for_count(heatmap, 0) == (np.inf, 0)
assert detect.threshold_for_count(np.zeros((4, 4, 4)), 3) == (np.inf, 0)

# %% [markdown]
# ## Does it matter?
#
# All of the 30 scans that have lesions, each cut at its TRUE count, by sweep and by bisection. A
# detection is a hit if its component's centre is within 3 voxels of a lesion's (lesson 11).

# %%
hits = {"sweep": [], "bisection": []}
never = larger = 0
with_lesions = [each for each in scans if each.count > 0]
for each in with_lesions:
    own = spot_map(each)
    halves = bisect(lambda level, m=own: number_at(m, level), own.min(), own.max(), each.count)
    found = {
        "sweep": detect.detect_lesions(own, each.count),
        "bisection": detect.components_above(own, halves[-1][0]),
    }
    never += halves[-1][1] != each.count
    larger += found["bisection"].volumes_vox.sum() > 2 * found["sweep"].volumes_vox.sum()
    for name, detections in found.items():
        hits[name].append(count_hits(detections.centres_zyx, each.centres_zyx))
print(f"bisection misses the count in {never} of {len(with_lesions)} scans, after 40 halvings;")
print(f"in {larger} its components have more than twice the sweep's voxels")

# %% [markdown]
# ## The picture
#
# Top left: the landscape at the two levels with three islands. Top right: the scan's number of
# components at every level (the sea falls from left to right), and bisection's tries. Below: the
# components that each finds in the same heatmap (highest value along z), one colour per component,
# with the true lesions ringed. Bisection has as many components as the sweep, but its largest is
# the ventricle merged with what is near it. The sweep cannot repair the map: it, too, spends
# components on the ventricle, which this filter takes for lesions.

# %%
figure, panels = plt.subplots(2, 2, figsize=(12.5, 10), layout="constrained")
(sea, curve), cuts = panels
sea.plot(t, land, color="black")
for level, colour, hatch, name in (
    (halved, BLUE, "\\\\", f"bisection's level, {halved:.2f}"),
    (first, GREEN, "//", f"the sweep's level, {first:.2f}: the third island is just its tip"),
):
    style = {"facecolor": colour, "edgecolor": "black", "hatch": hatch, "linewidth": 0}
    sea.axhline(level, color=colour, linewidth=1.5)
    sea.fill_between(t, level, land, where=land >= level, label=name, **style)
sea.set(title="three islands, twice", xlabel="place", ylabel="height", ylim=(0, 1.12))

curve.step(list(by_hand), series, where="post", color="black", linewidth=1)
curve.axhline(scan.count, color="grey", linestyle=":", label=f"the count, {scan.count}")
style = {"linestyle": "none", "markeredgecolor": "black"}
curve.plot(*zip(*tried, strict=True), "s", ms=9, color=BLUE, label="bisection's tries", **style)
curve.plot(sweep, scan.count, "*", ms=17, color=GREEN, label="the sweep's level", **style)
curve.set(title="a heatmap's components at every level", xlabel="level (the sea falls)")
curve.set(ylabel="number of components", xlim=(heatmap.max() * 1.05, lowest))
for panel in (sea, curve):
    panel.legend(frameon=False, loc="upper right")

# transparent, then one colour per component (no black: it would not be seen)
colours = np.array([(0, 0, 0, 0), *(to_rgba(c, 0.85) for c, *_ in LINES if c != "#000000")])
for panel, name, level in zip(cuts, hits, (sweep, tried[-1][0]), strict=True):
    found = detect.components_above(heatmap, level)
    title = f"{name}: {len(found.scores)} components, {found.volumes_vox.sum()} voxels"
    lesson.show(panel, heatmap.max(axis=0), scan, title, vmin=0)
    cut = colours[found.labels.max(axis=0)]
    lesson.show(panel, cut, scan, title, scan.centres_zyx, "white")

for name, own in hits.items():
    tp, fp, fn = np.sum(own, axis=0)
    print(f"{name}: finds {tp} of {tp + fn} lesions ({tp / (tp + fn):.1%}),", end=" ")
    print(f"{fp / len(own):.2f} false positives per scan")
lesson.save(figure, "10_threshold")

# %% [markdown]
# **Try.** Cut the maps at twice their true count: how many more lesions are found, and at what
# price? Connect only the 6 neighbours that share a face: which line above fails first, and are
# there more components now or fewer? Then write the sweep yourself: exercise set `10_threshold`.

"""From a heatmap and a count to lesions: threshold, 26-connected components, centres.

The threshold is the first level, from the highest voxel down, at which the number of connected
components equals the count (paper, section 2.2). That number is not monotone in the level, so no
bisection: we follow it exactly through ALL levels. Add the voxels from the highest down and link
each to its higher neighbours. Without the links that would close a loop, a forest grows, in which
    components = voxels - links.
A voxel's link to its highest neighbour is always in the forest; a voxel without a higher neighbour
is a peak, and the remaining links join the hills of two peaks: the saddles. So
    components(level) = peaks at or above it - saddles at or above it.
Ours is what the paper leaves open: ties, counts that cannot be met, a component's centre.
"""

import math
import operator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from weakunet.util.cli import InputError

CONNECTIVITY = np.ones((3, 3, 3), bool)  # 26 neighbours
FIRST_CHUNK, LARGEST_CHUNK = 2**11, 2**16  # voxels: most counts are met early


@dataclass
class Detections:
    """Components of a thresholded heatmap, highest score first; label i + 1 is detection i."""

    labels: np.ndarray  # (D, H, W) int32, 0 is background
    centres_zyx: np.ndarray  # (n, 3) centre of mass of the component's voxels, voxel indices
    scores: np.ndarray  # (n,) highest heatmap value in the component
    volumes_vox: np.ndarray  # (n,) number of voxels
    threshold: float  # voxels >= threshold belong to a component; inf: none does


def whole_count(count):
    """Round a predicted count half up, to a whole number of at least 0."""
    if not math.isfinite(count):
        raise InputError(f"predicted count is {count}; the model has diverged, train it again")
    whole = math.floor(count)
    return max(0, whole + int(count - whole >= 0.5))


def fill_outside(heatmap, inside):
    """Give voxels outside the mask `inside` the lowest value inside, which is never a threshold."""
    if not inside.any():
        raise InputError("heatmap: the mask is empty; check the region of interest")
    return np.where(inside, heatmap, heatmap[inside].min())


def threshold_for_count(heatmap, count):
    """Find the first level, from the highest down, at which the map has `count` components.

    Equal voxels are one level. The sweep ends at the first level with `count` components or more.
    Where ties skip the count, or no level reaches it, the swept level with the nearest number wins;
    ties go to fewer components, then to the highest level. The map's minimum is never a level: it
    is the background (a saliency map is mostly zero).

    Parameters: heatmap (D, H, W); count, a whole number (see `whole_count`).
    Returns: level, n_components; (inf, 0), no detection, for count 0 and for a constant map.
    Raises: InputError where the map holds NaN or infinity.
    """
    return thresholds_for_counts(heatmap, [count])[0]


def thresholds_for_counts(heatmap, counts):
    """`threshold_for_count` for several counts in one sweep: a list of (level, n_components)."""
    counts = [operator.index(count) for count in counts]
    best = [(math.inf, 0)] * len(counts)
    unmet = [i for i, count in enumerate(counts) if count > 0]
    for levels, numbers in component_numbers(heatmap):
        for i in list(unmet):
            reached = np.flatnonzero(numbers >= counts[i])
            stop = reached[0] + 1 if len(reached) else len(numbers)
            level, n = np.append(best[i][0], levels[:stop]), np.append(best[i][1], numbers[:stop])
            # any level before none, the nearest number, fewer components, the first level
            k = np.lexsort((n, abs(n - counts[i]), n == 0))[0]
            best[i] = float(level[k]), int(n[k])
            if len(reached):
                unmet.remove(i)
        if not unmet:
            break
    return best


def component_numbers(heatmap):
    """Sweep all levels above the minimum, highest first; yield (levels, numbers of components).

    They come in arrays, a chunk of voxels at a time, so that a caller can stop early.
    """
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 3 or heatmap.size == 0:
        raise InputError(f"heatmap: has shape {heatmap.shape}; it must be (D, H, W) and not empty")
    if not np.isfinite(heatmap).all():
        raise InputError("heatmap: holds NaN or infinity; a diverged model or a damaged file")
    heatmap = heatmap.astype(np.result_type(heatmap, np.float16), copy=False)  # -bool is refused
    lowest = heatmap.min()
    padded = np.pad(heatmap, 1, constant_values=lowest)
    voxels = np.flatnonzero(padded > lowest)
    voxels = voxels[np.argsort(-padded.reshape(-1)[voxels], kind="stable")]
    levels = padded.reshape(-1)[voxels]
    is_level = np.append(levels[1:] < levels[:-1], True)  # equal voxels: only after the last
    _, height, width = padded.shape
    steps = (np.argwhere(CONNECTIVITY) - 1) @ (height * width, width, 1)
    forest = _Forest(voxels, steps, padded.size)
    start, number, chunk = 0, 0, FIRST_CHUNK
    while start < len(voxels):
        stop = min(start + chunk, len(voxels))
        numbers = number + np.cumsum(forest.grow(start, stop))
        here = is_level[start:stop]
        if here.any():
            yield levels[start:stop][here], numbers[here]
        start, number, chunk = stop, numbers[-1], min(2 * chunk, LARGEST_CHUNK)


class _Forest:
    """Components of the voxels added so far; a voxel is named by its rank, 0 for the highest."""

    def __init__(self, voxels, steps, size):
        self.voxels, self.steps = voxels, steps
        self.rank = np.full(size, len(voxels), np.int32)  # per voxel; len(voxels): not added yet
        self.towards = np.arange(len(voxels), dtype=np.int32)  # a higher one of its component

    def roots(self, ranks):
        """Follow `towards` up to the component's highest voxel."""
        above = self.towards[ranks]
        while (above != ranks).any():
            ranks, above = above, self.towards[above]
        return above

    def grow(self, start, stop):
        """Add the voxels of rank start..stop-1; return the change in components from each."""
        new = np.arange(start, stop, dtype=np.int32)
        self.rank[self.voxels[start:stop]] = new
        near = self.rank[self.voxels[start:stop, None] + self.steps]  # (n, 26 and itself)
        self.towards[start:stop] = near.min(axis=1)
        change = (self.towards[start:stop] == new).astype(np.int64)  # peaks
        self.towards[start:stop] = own = self.roots(new)
        row, column = np.nonzero(near < new[:, None])
        theirs, own = self.roots(near[row, column]), own[row]
        apart = theirs != own
        if apart.any():
            saddles = self._join(theirs[apart], own[apart], row[apart])
            change -= np.bincount(saddles, minlength=stop - start)
        return change

    def _join(self, a, b, height):
        """Link hills a and b in ascending `height`; return the heights that closed no loop."""
        hills, pair = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)]), return_inverse=True)
        low, high = pair.reshape(2, -1).astype(np.int64)
        _, first = np.unique(low * len(hills) + high, return_index=True)  # a pair's highest link
        weight = height[first] + 1.0  # to csgraph 0 means "no link"
        # scipy's csgraph took no 64-bit indices before 1.17.1
        ends = low[first].astype(np.int32), high[first].astype(np.int32)
        graph = coo_array((weight, ends), shape=(len(hills), len(hills)))
        tree = minimum_spanning_tree(graph.tocsr())
        _, component = connected_components(tree, directed=False)
        _, top = np.unique(component, return_index=True)  # hills ascend: the first is the highest
        self.towards[hills] = hills[top[component]]
        return tree.data.astype(np.int64) - 1


def detect_lesions(heatmap, count):
    """Threshold a heatmap (D, H, W) at the level for `count`; return its `Detections`, or none.

    A detection's centre is the mean position of its voxels, unweighted.
    """
    return components_above(heatmap, threshold_for_count(heatmap, count)[0])


def components_above(heatmap, threshold):
    """Return the 26-connected components of heatmap >= threshold as `Detections`."""
    labels, n = ndimage.label(heatmap >= threshold, CONNECTIVITY)
    found = np.arange(1, n + 1)
    scores = np.asarray(ndimage.maximum(heatmap, labels, found) if n else [], dtype=float)
    order = np.argsort(-scores, kind="stable")  # equal scores: first in memory
    centres = np.reshape(ndimage.center_of_mass(labels > 0, labels, found) if n else [], (n, 3))
    volumes = np.bincount(labels.reshape(-1), minlength=n + 1)[1:]
    renamed = np.zeros(n + 1, np.int32)
    renamed[order + 1] = found
    labels = renamed[labels]
    return Detections(labels, centres[order], scores[order], volumes[order], float(threshold))

"""Exercise 10: the threshold that leaves as many components as were counted. About 1 hour.

Sweep the voxels from the highest down. A new voxel is a new component (+1). Then it is joined to
those of its 26 neighbours that are already there; joining two DIFFERENT components makes one (-1).
Union-find keeps track: parent[v] leads from a voxel towards its component's root, and a root is its
own parent.
"""

import numpy as np  # noqa: F401


def find_root(parent, v):
    """Follow parent (a list of indices) from v up to the root, the one that is its own parent."""
    raise NotImplementedError("find_root is yours to write")


def component_numbers(heatmap):
    """Levels (n,), the map's different values from the highest down, and numbers (n,): how many
    26-connected components the voxels >= level have. heatmap is (D, H, W).

    Equal voxels are ONE level: record the number after the last of them.
    Hint: order = np.argsort(-heatmap, axis=None); np.unravel_index gives (z, y, x). Join ROOTS:
    parent[find_root(parent, a)] = find_root(parent, b), if the two differ.
    """
    raise NotImplementedError("component_numbers is yours to write")


def choose_level(levels, numbers, count):
    """The FIRST level, from the highest down, with at least `count` components. If ties skip the
    count there, the level up to it whose number is nearest (of two equally near, the higher level).
    If no level reaches the count, the nearest of all. count is 1 or more.

    The number is not monotone: hills that appeared merge again lower down. A bisection assumes that
    it is, and may end at a much lower level, where the hills have merged.
    Hint: cut levels and numbers after the first that reaches the count, then np.argmin of the
    distance to the count (it breaks ties towards the first).
    """
    raise NotImplementedError("choose_level is yours to write")

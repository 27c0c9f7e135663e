import numpy as np


def find_root(parent, v):
    while parent[v] != v:
        v = parent[v]
    return v


def component_numbers(heatmap):
    order = np.argsort(-heatmap, axis=None)
    parent = list(range(heatmap.size))
    taken = np.zeros(heatmap.shape, bool)
    index = np.arange(heatmap.size).reshape(heatmap.shape)
    levels, numbers, number = [], [], 0
    for v in order:
        z, y, x = np.unravel_index(v, heatmap.shape)
        near = np.s_[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        taken[z, y, x] = True
        number += 1
        for other in index[near][taken[near]]:
            a, b = find_root(parent, other), find_root(parent, v)
            if a != b:
                parent[a] = b
                number -= 1
        if levels and levels[-1] == heatmap[z, y, x]:
            numbers[-1] = number
        else:
            levels.append(heatmap[z, y, x])
            numbers.append(number)
    return np.array(levels), np.array(numbers)


def choose_level(levels, numbers, count):
    reached = np.flatnonzero(numbers >= count)
    end = reached[0] + 1 if len(reached) else len(numbers)
    return levels[np.argmin(abs(numbers[:end] - count))]

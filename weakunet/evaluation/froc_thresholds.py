"""Thresholds of a FROC over all scans, found without holding all scans' voxels in memory.

One threshold after another is to let 1 ... all voxels pass: they are the values of certain ranks
among the voxels of all maps. A float's bits, read as a whole number (with the sign bit flipped, or
for a negative number all bits), ascend with the float; so cut the numbers into bins by their upper
bits. A first pass over the maps counts the bins, which tells the bin that each rank lies in; a
second counts the values inside those few bins. The result is exact.
"""

import numpy as np

SHIFT = np.uint64(40)  # of 64 bits: a bin is 1/4096 of a binade, 2048 float32 values
SIGN = np.uint64(1 << 63)
PENDING = 2**18  # counts waiting to be added up


def _keys(heatmap):
    """Whole numbers that ascend with the values of the voxels above the map's minimum."""
    bits = heatmap[heatmap > heatmap.min()].astype(np.float64).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _values(keys):
    return np.where(keys & SIGN, keys ^ SIGN, ~keys).view(np.float64)


def count_bins(heatmap):
    """First pass, one map: its bins, ascending, and the voxels in each."""
    return np.unique(_keys(heatmap) >> SHIFT, return_counts=True)


def count_values(heatmap, bins):
    """Second pass, one map: the numbers in these bins, ascending, and the voxels of each."""
    keys = _keys(heatmap)
    return np.unique(keys[np.isin(keys >> SHIFT, bins)], return_counts=True)


class Tally:
    """The counts of all maps as those of one, added up as they come."""

    def __init__(self):
        self.counts, self.pending = [(np.zeros(0, np.uint64), np.zeros(0, np.int64))], 0

    def add(self, one):
        """Add the counts of a map."""
        self.counts.append(one)
        self.pending += len(one[0])
        if self.pending > PENDING:
            self.total()

    def total(self):
        """Names, ascending, and counts."""
        names, counts = (np.concatenate(column) for column in zip(*self.counts, strict=True))
        names, place = np.unique(names, return_inverse=True)
        total = np.zeros(len(names), np.int64)
        np.add.at(total, place.reshape(-1), counts)
        self.counts, self.pending = [(names, total)], 0
        return names, total


def add_up(counts):
    """The total of the counts of several maps."""
    tally = Tally()
    for one in counts:
        tally.add(one)
    return tally.total()


def wanted_bins(bins, levels):
    """The bins that `thresholds` must know the values of: all if they are few."""
    names, counts = bins
    if len(names) <= levels:
        return names
    above = np.cumsum(counts[::-1])  # voxels in this bin and higher ones
    return np.unique(names[::-1][np.searchsorted(above, _ranks(above[-1], levels))])


def _ranks(voxels, levels):
    return np.geomspace(1, voxels, levels).round().astype(int)


def thresholds(bins, values, levels):
    """Thresholds, descending, from the counts of both passes over all maps.

    Up to `levels` distinct values are all taken; of more, those that let 1 ... all voxels pass, in
    geometric steps, first and last included.
    """
    names, counts = values
    if not (len(bins[0]) <= levels and len(names) <= levels):
        bin_names, in_bin = bins
        in_higher_bins = np.cumsum(in_bin[::-1])[::-1] - in_bin
        # voxels with this value or a higher one: those of its bin, and those of all higher bins
        own = np.searchsorted(bin_names, names >> SHIFT)
        total = np.cumsum(counts[::-1])[::-1]
        first_of_next = np.searchsorted(names >> SHIFT, (names >> SHIFT) + np.uint64(1))
        above = total - np.append(total, 0)[first_of_next] + in_higher_bins[own]
        place = np.searchsorted(above[::-1], _ranks(in_bin.sum(), levels))
        names = np.unique(names[::-1][place])
    return np.unique(_values(names))[::-1]

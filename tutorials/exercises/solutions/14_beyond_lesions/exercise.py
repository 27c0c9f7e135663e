import numpy as np

PAPER, INK = 0.15, 0.75


def make_sheet(images, classes, corners, digit, size):
    sheet = np.full((size, size), PAPER)
    edge = images.shape[1]
    for image, (y, x) in zip(images, corners, strict=True):
        sheet[y : y + edge, x : x + edge] += INK * image
    counted = classes == digit
    return sheet, int(counted.sum()), corners[counted] + (edge - 1) / 2


def split_by_writer(writers, n_val, n_test, rng):
    drawn = rng.permutation(np.unique(writers))
    splits = np.full(len(writers), "train")
    splits[np.isin(writers, drawn[:n_val])] = "val"
    splits[np.isin(writers, drawn[n_val : n_val + n_test])] = "test"
    return splits


def local_maxima(maps, k):
    _, height, width = maps.shape
    corners = [(y, x) for y in range(0, height, k) for x in range(0, width, k)]
    maxima = [maps[:, y : y + k, x : x + k].max(axis=(1, 2)) for y, x in corners]
    return np.mean(maxima, axis=0)


def judge_sheet(found, middles, classes, digit, radius):
    distance = np.linalg.norm(found[:, None] - middles[None], axis=2)
    nearest = distance.argmin(axis=1)
    marked = np.where(distance.min(axis=1) <= radius, classes[nearest], -1)
    hits = len(set(nearest[marked == digit]))
    wrong, missed = len(found) - hits, (classes == digit).sum() - hits
    return marked, min(wrong, missed)

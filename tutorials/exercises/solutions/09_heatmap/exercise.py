import numpy as np


def predict_count(f, w, b, pooling):
    pooled = f.max(axis=(1, 2, 3)) if pooling == "max" else f.mean(axis=(1, 2, 3))
    return w @ pooled + b


def heatmap(f, w):
    return np.tensordot(w, f, axes=1)


def count_from_heatmap(m, b):
    return m.mean() + b

import numpy as np

from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward


def saliency(scan, w, v):
    x = scan[None, None]
    z = conv3d_forward(x, w, np.zeros(len(w)))
    df = np.broadcast_to(v[:, None, None, None] / scan.size, z.shape)
    dz = df * (z > 0)
    return abs(conv3d_backward(dz, x, w)[0][0, 0])


def weighted_sum(scan, heatmap, weight, scan_scale, heatmap_scale):
    return weight * scan / scan_scale + (1 - weight) * heatmap / heatmap_scale


def choose_weight(weights, tpr, splits):
    splits = np.array(splits)
    best = tpr[:, splits == "val"].mean(axis=1).argmax()
    return weights[best], tpr[best, splits == "test"].mean()

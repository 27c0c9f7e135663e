"""Fully supervised upper bound: the same network, with a label per voxel instead of a count.

Not in the paper; it shows what the weak label costs. The same layers give every voxel the logit
z = M + b, M = sum_i w_i f_i (eq. 3's heatmap, without global pooling), and learn

    loss = mean over voxels v inside the ROI of  c_v (log(1 + exp(z_v)) - y_v z_v)

the cross-entropy of y_v = 1 within LABEL_RADIUS_MM of a lesion's centre, else 0. The weight c_v of
a lesion's voxel is POSITIVE_WEIGHT, that of any other 1, because only a few in a thousand are
lesions. The count is the number of components above one threshold, chosen on validation scans.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from weakunet.detection.detect import CONNECTIVITY, component_numbers
from weakunet.evaluation.metrics import correlation
from weakunet.gpu import backend
from weakunet.layers.conv.conv3d import conv3d_backward
from weakunet.training.augment import warp
from weakunet.training.batches import pad_together
from weakunet.training.run import Run
from weakunet.util.cli import InputError

LABEL_RADIUS_MM = 0.85
POSITIVE_WEIGHT = 10.0
NOT_COUNTED = -1  # label of voxels outside the slice whose lesions were marked
FRACTIONS = np.geomspace(1e-5, 0.1, 300)  # of the voxels, which may pass `components_threshold`


def draw_labels(shape, centres_zyx, spacing_mm):
    """(D, H, W) float32: 1 within LABEL_RADIUS_MM of a centre and at the voxel nearest to it."""
    labels, spacing_mm = np.zeros(shape, np.float32), np.asarray(spacing_mm)
    reach = np.floor(LABEL_RADIUS_MM / spacing_mm + 0.5).astype(int)
    around = np.argwhere(np.ones(2 * reach + 1)) - reach  # of the nearest voxel
    for centre in centres_zyx:
        voxels = np.floor(centre + 0.5).astype(int) + around
        away_mm = (voxels - centre) * spacing_mm
        chosen = ((away_mm**2).sum(axis=-1) <= LABEL_RADIUS_MM**2) | ~around.any(axis=1)
        chosen &= ((voxels >= 0) & (voxels < shape)).all(axis=1)
        labels[tuple(voxels[chosen].T)] = 1
    return labels


def label_volumes(scans, shape):
    """Labels of all scans, padded: (n, *shape) int8, 1 at lesions, 0 elsewhere, or NOT_COUNTED.

    Raises InputError where a scan has no centres.
    """
    labels = np.zeros((len(scans), *shape), np.int8)
    for own, scan in zip(labels, scans, strict=True):
        if scan.centres_zyx is None:
            raise InputError(f"{scan.subject}: no lesion centres; voxel-wise labels need them")
        own[...] = draw_labels(shape, scan.centres_zyx, scan.volume.spacing_mm)
        if scan.slice_index is not None:
            own[np.arange(shape[0]) != scan.slice_index] = NOT_COUNTED
    return labels


def voxel_loss(logits, labels, counts):
    """The loss (see above) and its gradient with respect to the logits.

    Parameters: logits; labels in [0, 1]; counts (bool), which voxels count; all (N, 1, D, H, W).
    """
    xp = backend.array_module(logits)
    weight = counts * (1 + (POSITIVE_WEIGHT - 1) * labels) / max(int(counts.sum()), 1)
    loss = (weight * (xp.logaddexp(0, logits) - labels * logits)).sum()
    probability = xp.exp(-xp.logaddexp(0, -logits))
    return float(loss), (weight * (probability - labels)).astype(logits.dtype, copy=False)


def forward_backward(model, scans, labels, counts):
    """The loss of a batch; sets all gradients of the model."""
    head, f = model.linear, model.features(scans, keep=True)
    loss, dlogits = voxel_loss(model.heatmap(f) + head.params["b"], labels, counts)
    w = head.params["w"].reshape(1, -1, 1, 1, 1)
    df, dw, head.grads["b"] = conv3d_backward(dlogits, f, w)
    head.grads["w"] = dw.reshape(-1)
    model.backward_features(df)
    return loss


class VoxelwiseRun(Run):
    """A training run on voxel-wise labels: same loop, optimizer, schedule and transforms.

    Scans need centres_zyx. The heatmap of `predict_scan` is then the logit without its bias, and
    its count means nothing.
    """

    columns = ("epoch", "lr", "train_loss", "val_loss", "val_r", "train_worst", "seconds")
    one_graph = False  # its labels come from the host

    def __init__(self, model, settings, out):
        # gaussian_head: the loop leaves the last layer alone; `prepare` starts it
        super().__init__(model, dataclasses.replace(settings, gaussian_head=True), out)

    def prepare(self, scans, volumes):
        shape = self.model.shape
        self.val = pad_together([scan.volume.array for scan in scans["val"]], shape)
        self.labels = {split: label_volumes(scans[split], shape) for split in ("train", "val")}
        if self.epoch == self.batch == 0:
            lesion = inside = 0
            for volume, labels in zip(volumes, self.labels["train"], strict=True):
                counts = (backend.to_host(volume) > 0) & (labels != NOT_COUNTED)
                lesion, inside = lesion + (labels[counts] == 1).sum(), inside + counts.sum()
            # the logit that is right on average: the log of the weighted odds of a lesion's voxel
            odds = POSITIVE_WEIGHT * max(lesion, 1) / max(inside - lesion, 1)
            self.model.linear.params["b"][:] = np.log(odds)

    def learn(self, scans, targets, places, matrices):
        labels = self._labels("train", backend.to_host(places))
        return forward_backward(self.model, scans, *_targets(scans, warp(labels, matrices)))

    def _labels(self, split, chosen):
        labels = self.labels[split][chosen].astype(np.float32)  # (N, D, H, W)
        return backend.to_device(labels, self.model.device)

    def validate(self):
        """Sums of the probabilities (n,); keeps the mean loss for `finish_epoch`."""
        losses, sums, model = [], [], self.model
        for i, volume in enumerate(self.val):
            scan = backend.to_device(volume[None, None], model.device)  # (1, 1, D, H, W)
            labels, counts = _targets(scan, self._labels("val", [i]))
            logits = model.heatmap(model.features(scan)) + model.linear.params["b"]
            losses.append(voxel_loss(logits, labels, counts)[0])
            inside = backend.to_host(logits)[backend.to_host(counts)]
            sums.append(np.exp(-np.logaddexp(0, -inside)).sum())
        self.val_loss = np.mean(losses)
        return np.array(sums)

    def finish_epoch(self, counts, sums, seconds):
        r = correlation(counts["val"], sums)
        losses = backend.to_host(self.predicted)
        row = self.keep_epoch(losses.mean(), self.val_loss, r, losses.max(), seconds)
        print(
            f"epoch {self.epoch}/{self.settings.epochs}  cross-entropy: training {row[2]:.5f}, "
            f"validation {row[3]:.5f}  r {r:.2f}  {seconds:.1f} s",
            flush=True,
        )


def _targets(scans, labels):
    """(labels in [0, 1], which voxels count), each like scans, from labels (N, D, H, W)."""
    labels = labels[:, None]
    return labels * (labels > 0), (scans > 0) & (labels > NOT_COUNTED / 2)


def components_threshold(heatmaps, counts):
    """The one level for all heatmaps above which their components agree best with the counts.

    Parameters: heatmaps (D, H, W) and true counts of VALIDATION scans. Returns the level with the
    least squared error of the count; ties go to the highest. At most a tenth of the voxels above
    their map's minimum pass it. Returns inf where every map is constant.
    """
    values = np.concatenate([heatmap[heatmap > heatmap.min()] for heatmap in heatmaps])
    if not len(values):
        return np.inf
    levels = np.unique(np.quantile(values, 1 - FRACTIONS, method="inverted_cdf"))
    errors = np.zeros(len(levels))
    for heatmap, count in zip(heatmaps, counts, strict=True):
        swept, numbers = [np.zeros(0)], [np.zeros(1, int)]
        for own_levels, own_numbers in component_numbers(heatmap):
            swept.append(own_levels)
            numbers.append(own_numbers)
            if own_levels[-1] < levels[0]:
                break
        passed = np.searchsorted(-np.concatenate(swept), -levels, side="right")  # swept >= level
        errors += (np.concatenate(numbers)[passed] - count) ** 2
    return float(levels[::-1][np.argmin(errors[::-1])])


def count_components(heatmap, level):
    """How many 26-connected components a heatmap (D, H, W) has at and above a level."""
    return int(ndimage.label(heatmap >= level, CONNECTIVITY)[1])

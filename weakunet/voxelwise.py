"""The ceiling: the same network, trained with a label per voxel instead of a count per scan.

Not in the paper; it shows what the weak label costs. The same layers give every voxel the logit
M + b, M = sum_i w_i f_i (eq. 3's heatmap, with its bias, without global pooling), and learn

    loss = mean over voxels v inside the ROI of  c_v (log(1 + exp(z_v)) - y_v z_v)

the cross-entropy of y_v = 1 within LABEL_RADIUS_MM of a lesion's centre, else 0, where lesions
count c_v = POSITIVE_WEIGHT fold because they are a few voxels in a thousand. The optimizer, the
schedule, the transforms and their random numbers are those of training.py. Its count is the number
of components above one threshold, chosen on validation scans.
"""

import time

import numpy as np
from scipy import ndimage

from weakunet import backend
from weakunet.augment import draw_transform, warp
from weakunet.checkpoint import save_checkpoint
from weakunet.cli import InputError, progress, write_csv
from weakunet.detect import CONNECTIVITY, component_numbers
from weakunet.layers.conv3d import conv3d_backward, conv3d_forward
from weakunet.metrics import correlation
from weakunet.training import TRANSFORM, Run, common_shape, learning_rate, pad_together

LABEL_RADIUS_MM = 0.85
POSITIVE_WEIGHT = 10.0
COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "val_loss",
    "val_r",
    "train_worst",
    "seconds",
)  # as training.COLUMNS
# which share of the voxels may pass the threshold of `components_threshold`
SHARES = np.geomspace(1e-5, 0.1, 300)


def draw_labels(shape, centres_zyx, spacing_mm):
    """(D, H, W) float32: 1 within LABEL_RADIUS_MM of a centre and at the voxel nearest to it."""
    labels, spacing_mm = np.zeros(shape, np.float32), np.asarray(spacing_mm)
    reach = LABEL_RADIUS_MM / spacing_mm
    for centre in centres_zyx:
        low = np.maximum(np.ceil(centre - reach), 0).astype(int)
        high = np.minimum(np.floor(centre + reach) + 1, shape).astype(int)
        box = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        away_mm = np.stack(np.mgrid[box], axis=-1) - centre
        labels[box][((away_mm * spacing_mm) ** 2).sum(axis=-1) <= LABEL_RADIUS_MM**2] = 1
        nearest = np.floor(centre + 0.5).astype(int)
        if ((nearest >= 0) & (nearest < shape)).all():
            labels[tuple(nearest)] = 1
    return labels


def _example(run, scan, volume, matrix):
    """Scan, labels and which voxels count (bool), each (D, H, W), after the transform `matrix`.

    The labels are drawn anew around the moved centres. Of a scan whose lesions were marked in one
    slice only that slice counts.
    """
    volume = backend.to_device(volume, run.model.device).astype(np.float32, copy=False)
    shape, linear, offset = volume.shape, matrix[:, :3], matrix[:, 3]
    centres = (scan.centres_zyx - offset) @ np.linalg.inv(linear).T
    labels = draw_labels(shape, centres, scan.volume.spacing_mm)
    moved = warp(volume, matrix)
    counts = moved > 0
    if scan.slice_index is not None:
        source_z = np.tensordot(linear[0], np.indices(shape), axes=1) + offset[0]
        in_slice = abs(source_z - scan.slice_index) <= 0.5
        counts &= backend.to_device(in_slice, run.model.device)
    return moved, backend.to_device(labels, run.model.device), counts


def _batch(run, scans, volumes, chosen, transform):
    """The `_example`s of the chosen scans, stacked to (n, 1, D, H, W) each."""
    settings, examples = run.settings, []
    for i in chosen:
        matrix = np.eye(3, 4)
        if transform:
            rng = np.random.default_rng([settings.seed, TRANSFORM, run.epoch, i])
            amounts = (settings.flips, settings.shift_vox, settings.rotate_deg, settings.scale)
            matrix = draw_transform(rng, volumes[i].shape, *amounts)
        examples.append(_example(run, scans[i], volumes[i], matrix))
    xp = backend.array_module(examples[0][0])
    return [xp.stack(arrays)[:, None] for arrays in zip(*examples, strict=True)]


def voxel_loss(logits, labels, counts):
    """The loss (see above) and its gradient in the logits; all arrays (N, 1, D, H, W)."""
    xp = backend.array_module(logits)
    weight = counts * (1 + (POSITIVE_WEIGHT - 1) * labels) / max(int(counts.sum()), 1)
    loss = (weight * (xp.logaddexp(0, logits) - labels * logits)).sum()
    probability = xp.exp(-xp.logaddexp(0, -logits))
    return float(loss), (weight * (probability - labels)).astype(logits.dtype, copy=False)


def forward_backward(model, scans, labels, counts):
    """The loss; sets all gradients of the model."""
    head = model.linear
    w = head.params["w"].reshape(1, -1, 1, 1, 1)
    f = model.features(scans, keep=True)
    loss, dlogits = voxel_loss(conv3d_forward(f, w, head.params["b"]), labels, counts)
    df, dw, head.grads["b"] = conv3d_backward(dlogits, f, w)
    head.grads["w"] = dw.reshape(-1)
    model.backward_features(df)
    return loss


def _train_epoch(run, scans, volumes, stop):
    """The losses of the batches of one epoch; None if `stop()` ended it early."""
    settings, order, losses = run.settings, run.order(len(scans)), []
    run.optimizer.lr = learning_rate(settings, run.epoch)
    starts = range(0, len(scans), settings.batch)
    for start in progress(starts, f"epoch {run.epoch + 1}/{settings.epochs}", quiet=True):
        chosen = order[start : start + settings.batch]
        losses.append(forward_backward(run.model, *_batch(run, scans, volumes, chosen, True)))
        run.optimizer.step(run.model.grads)
        if stop():
            return None
    return losses


def _validate(run, scans, volumes):
    """Mean loss, and the correlation of the true count with the sum of the probabilities."""
    losses, sums, head = [], [], run.model.linear.params
    for i in range(len(scans)):
        array, labels, counts = _batch(run, scans, volumes, [i], False)
        w = head["w"].reshape(1, -1, 1, 1, 1)
        logits = conv3d_forward(run.model.features(array), w, head["b"])
        losses.append(voxel_loss(logits, labels, counts)[0])
        inside = backend.to_host(logits)[backend.to_host(counts)]
        sums.append(np.exp(-np.logaddexp(0, -inside)).sum())
    return float(np.mean(losses)), correlation([scan.count for scan in scans], sums)


def train_voxelwise(model, settings, scans, out, stop=lambda: False):
    """Train a WeakUNet with voxel-wise labels; True if `stop()` ended it early.

    Parameters: settings as train.Settings; scans, dict split -> list of LoadedScan, `train` and
    `val` of them used, all with centres_zyx. Writes best.npz (lowest validation loss), last.npz and
    log.csv into `out`; goes on from a last.npz there, at the beginning of an epoch. The heatmap of
    `predict_scan` is then the logit without its bias, and its count means nothing.
    Raises InputError where a scan has no centres or the training diverges.
    """
    run, volumes = Run(model, settings, out), {}
    for scan in scans["train"] + scans["val"]:
        if scan.centres_zyx is None:
            raise InputError(f"{scan.subject}: no lesion centres; voxel-wise labels need them")
    arrays = {split: [scan.volume.array for scan in scans[split]] for split in ("train", "val")}
    model.shape = common_shape(arrays["train"] + arrays["val"], model.multiple)
    model.flips = settings.flips
    for split in arrays:
        volumes[split] = backend.cache(pad_together(arrays[split], model.shape), model.device)
    if run.started():
        run.load()
    else:
        model.linear.params["b"][:] = _log_odds(run, scans["train"], volumes["train"])
        run.save()
    while run.epoch < settings.epochs and not run.stale():
        started = time.monotonic()
        losses = _train_epoch(run, scans["train"], volumes["train"], stop)
        if losses is None:
            return True
        val_loss, r = _validate(run, scans["val"], volumes["val"])
        _finish_epoch(run, losses, val_loss, r, time.monotonic() - started)
    return False


def _log_odds(run, scans, volumes):
    """The logit that is right on average: the log of the weighted odds of a lesion's voxel."""
    lesion = inside = 0
    for scan, volume in zip(scans, volumes, strict=True):
        _, labels, counts = _example(run, scan, volume, np.eye(3, 4))
        lesion, inside = lesion + float((labels * counts).sum()), inside + float(counts.sum())
    return np.log(POSITIVE_WEIGHT * max(lesion, 1) / max(inside - lesion, 1))


def _finish_epoch(run, losses, val_loss, r, seconds):
    """As Run.finish_epoch, with the loss of the voxels for the count's squared error."""
    if not np.isfinite(val_loss):
        raise InputError(
            f"{run.out}: training diverged in epoch {run.epoch + 1}; "
            "train into another folder with a lower --lr or --eps"
        )
    run.epoch += 1
    loss, worst = float(np.mean(losses)), float(np.max(losses))
    row = (run.epoch, run.optimizer.lr, loss, val_loss, r, worst, round(seconds, 2))
    run.history.append(row)
    if run.best_epoch() == len(run.history) - 1:
        save_checkpoint(run.out / "best.npz", run.model)
    run.save()
    write_csv(run.out / "log.csv", COLUMNS, run.history)
    print(
        f"epoch {run.epoch}/{run.settings.epochs}  cross-entropy: training {loss:.5f}, "
        f"validation {val_loss:.5f}  r {r:.2f}  {seconds:.1f} s",
        flush=True,
    )


def components_threshold(heatmaps, counts):
    """The one level for all heatmaps above which their components agree best with the counts.

    Parameters: heatmaps (D, H, W) and true counts of VALIDATION scans. Returns the level with the
    least squared error of the count, of equals the highest; at most a tenth of the voxels above
    their map's minimum pass it. inf where every map is constant.
    """
    values = np.concatenate([heatmap[heatmap > heatmap.min()] for heatmap in heatmaps])
    if not len(values):
        return np.inf
    levels = np.unique(np.quantile(values, 1 - SHARES, method="inverted_cdf"))
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

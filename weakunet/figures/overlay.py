"""The paper's Fig. 2: one scan, its heatmap with hits and misses, and its segmentation."""

import numpy as np

from weakunet.evaluation.metrics import PAPER_TOLERANCE
from weakunet.figures.drawing import busiest_slices, new_figure, save_figure, show_slice
from weakunet.figures.marks import (
    draw_marks,
    draw_rings,
    judge_detections,
    mark_handles,
    ring_handle,
)

FRONT = "y, towards the front (mm)"


def overlay(path, image, heatmap, labels, lesions_zyx, spacing_mm, tolerance=PAPER_TOLERANCE):
    """The paper's Fig. 2: image, heatmap with marks, segmentation; up to three axial slices.

    The slices are those with the most lesions and detections, each shown with the marks of the
    slices next to it: the image at z, heatmap and segmentation as maxima over z - 1, z, z + 1.

    Parameters: image, heatmap, labels (D, H, W), labels as in `Detections`; lesions_zyx (m, 3)
    voxel indices, None where they are not known (then detections are not matched); spacing_mm
    (z, y, x); tolerance of a hit, the radius of the rings.
    """
    marks, colour_of = judge_detections(labels, lesions_zyx, spacing_mm, tolerance)
    slices = busiest_slices(np.vstack(list(marks.values())), len(image))
    _, dy, dx = spacing_mm
    tall = np.clip(3.2 * image.shape[1] * dy / (image.shape[2] * dx), 2, 7)
    height = tall * len(slices) + 1.6
    figure = new_figure(10.5, height, layout=None)  # the margins by hand: half the time
    figure.subplots_adjust(0.07, 1.25 / height, 0.99, 1 - 0.35 / height, 0.04, 0.06)
    axes = figure.subplots(len(slices), 3, squeeze=False, sharex=True, sharey=True)
    for row, z in zip(axes, slices, strict=True):
        slab = slice(max(0, z - 1), z + 2)
        show_slice(row[0], image[z], spacing_mm, image.min(), image.max())
        show_slice(row[1], heatmap[slab].max(0), spacing_mm, *np.percentile(heatmap, [1, 99.9]))
        show_slice(row[2], colour_of[labels[slab].max(0)], spacing_mm)
        draw_rings(row[0], () if lesions_zyx is None else lesions_zyx, z, dy, dx, tolerance)
        draw_marks(row[1], marks, z, dy, dx)
        draw_marks(row[2], marks, z, dy, dx)
        row[0].set_ylabel(f"slice z = {z}\n{FRONT}")
    titles = ("image", "heatmap, highest of z − 1, z, z + 1", "segmentation, same slices")
    if len(image) == 1:  # one slice was cut out, or the image is 2-D
        titles = ("image", "heatmap", "segmentation")
        row[0].set_ylabel(FRONT)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("x, towards the patient's right (mm)")
    handles = mark_handles(marks) + ([] if lesions_zyx is None else [ring_handle(tolerance)])
    style = {"ncols": 2, "frameon": False, "fontsize": 9, "labelspacing": 0.7}
    figure.legend(handles=handles, loc="lower center", **style)
    save_figure(figure, path)

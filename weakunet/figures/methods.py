"""Methods side by side: the paper's Fig. 3, left (maps on one scan) and right (FROC).

A method has the same colour, line and marker wherever the same methods are given in the same order,
so that it can be followed in grey. Hollow markers are the paper's own figures, on its own scans.
"""

import textwrap

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from weakunet.detection.detect import components_above
from weakunet.figures.drawing import (
    ABOVE,
    OUTLINE,
    busiest_slices,
    line_style,
    new_figure,
    save_figure,
    show_slice,
)
from weakunet.figures.marks import (
    draw_marks,
    draw_rings,
    judge_detections,
    mark_handles,
    ring_handle,
)

HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 9}
WHY_IT_FALLS = (
    "A curve falls where a lower threshold makes detections grow into one another: their centres "
    "move out of reach of the lesions they had found."
)


def method_maps(path, image, maps, thresholds, centres_zyx, spacing_mm):
    """The paper's Fig. 3, left: the maps of all methods on one scan, in the same slice.

    Maps are shown as the maximum over z - 1, z, z + 1, each from its own 1st to its own 99.9th
    percentile over the scan, which its title states. Outlined is what reaches its threshold; marks
    say what each detection is (see marks.py). Every lesion in those slices has a ring.

    Parameters: image (D, H, W); maps, name as printed -> (D, H, W); thresholds, name -> level;
    centres_zyx (m, 3) voxel indices of the lesions; spacing_mm (z, y, x).
    """
    z = busiest_slices(centres_zyx, len(image), 1)[0]
    columns = min(4, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    _, dy, dx = spacing_mm
    tall = np.clip(2.5 * image.shape[1] * dy / (image.shape[2] * dx), 1.2, 4.5)
    figure = new_figure(11, (tall + 0.8) * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).reshape(-1)
    slab = slice(max(0, z - 1), z + 2)
    shown = {f"image, slice z = {z}": (image[z], image.min(), image.max())}
    shown |= {name: (array[slab].max(0), *_own_scale(array)) for name, array in maps.items()}
    for k, (name, (axial, low, high)) in enumerate(shown.items()):
        show_slice(axes[k], axial, spacing_mm, low, high, "inferno" if k else "gray")
        scale = f"black {low:.3g}, {'yellow' if k else 'white'} {high:.3g}"
        axes[k].set_title(f"{textwrap.fill(name, 32)}\n{scale}", fontsize=10)
        draw_rings(axes[k], centres_zyx, z, dy, dx)
        if k:
            _outline(axes[k], axial >= thresholds[name], dy, dx)
            labels = components_above(maps[name], thresholds[name]).labels
            marks, _ = judge_detections(labels, centres_zyx, spacing_mm)
            draw_marks(axes[k], marks, z, dy, dx, size=7)
    for panel in axes:
        panel.set_xlabel("x (mm)", fontsize=9)
        panel.set_ylabel("y (mm)", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.label_outer()
    for panel in axes[len(shown) :]:
        panel.axis("off")
    style = {"color": ABOVE, "linewidth": 1.6, "path_effects": OUTLINE}
    handles = [ring_handle(), Line2D([], [], label="above the method's threshold", **style)]
    handles += mark_handles(marks, numbers=False)
    style = {"ncols": 2, "frameon": False, "fontsize": 9, "labelspacing": 0.7}
    figure.legend(handles=handles, loc="outside lower center", **style)
    save_figure(figure, path)


def _own_scale(array):
    low, high = np.percentile(array, [1, 99.9])
    return (low, high) if high > low else (array.min(), array.max())


def _outline(panel, inside, dy, dx):
    """Draw the edges of the voxels of a mask (H, W), exactly: a contour would cut their corners."""
    padded = np.pad(inside, 1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([x - 0.5, y - 0.5, x + 0.5, y - 0.5], axis=-1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([x - 0.5, y - 0.5, x - 0.5, y + 0.5], axis=-1)
    edges = np.concatenate([level, upright]).reshape(-1, 2, 2) * (dx, dy)
    for colour, width in (("black", 3.2), (ABOVE, 1.3)):  # black beneath all, not beneath each
        style = {"colors": colour, "linewidths": width, "capstyle": "round"}
        panel.add_collection(LineCollection(edges, **style), autolim=False)


def froc_curves(path, curves, operating, paper=None, furthest=None):
    """The paper's Fig. 3, right: free-response ROC, and where its count puts each method.

    Of several seeds the mean is drawn, with a band from the lowest to the highest, as far as all of
    them reach. Curves begin at (0, 0), the count 0.

    Parameters
    ----------
    curves : method -> a curve per seed, list of dict fp_per_scan, tpr (see froc.froc_by_count)
    operating : method -> (fp_per_scan, tpr), a filled marker
    paper : method -> (fp_per_scan, tpr) as published, a hollow marker; may lack methods
    furthest : FPav at the right end; None: half as far again as the furthest marker
    """
    paper = paper or {}
    ends = [x for x, _ in [*operating.values(), *paper.values()] if np.isfinite(x)]
    furthest = furthest or 1.5 * max([1.0, *ends])
    figure = new_figure(8.8, 4.8)
    axes = figure.subplots()
    handles, fall = [], False
    for k, method in enumerate(curves):
        style = line_style(k, marker=None, linewidth=1.8)
        fall |= _draw_curves(axes, curves[method], furthest, style)
        mark = line_style(k, linestyle="none", markeredgecolor="white", zorder=4)
        axes.plot(*operating[method], **mark)
        if method in paper:
            axes.plot(*paper[method], **line_style(k, **HOLLOW))
        name = textwrap.fill(method.replace("_", " "), 34)
        handles.append(Line2D([], [], label=name, **line_style(k, markeredgecolor="white")))
    grey = {"color": "grey", "marker": "o", "markersize": 9, "linestyle": "none"}
    handles.append(Line2D([], [], label="filled: at the predicted count", **grey))
    if paper:
        handles.append(Line2D([], [], label="hollow: the paper's Table 1", **grey | HOLLOW))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=4)
    axes.set(xlim=(0, furthest), xlabel="FPav (false positives per scan)")
    axes.set(ylim=(0, 1.02), ylabel="TPR (fraction of the lesions found)")
    several = any(len(own) > 1 for own in curves.values())
    band = "; band: lowest to highest seed" if several else ""
    axes.set_title(f"line: each scan's count, multiplied{band}", fontsize=10)
    if fall:
        figure.supxlabel(textwrap.fill(WHY_IT_FALLS, 110), fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _draw_curves(axes, seeds, furthest, style):
    """Draw one method's curve, or the mean of its seeds with their band; True if it falls."""
    curves = []
    for seed in seeds:
        x, y = np.array([(0, 0), *((at["fp_per_scan"], at["tpr"]) for at in seed)], float).T
        order = np.lexsort((y, x))  # FPav need not grow with the count
        curves.append((x[order], y[order]))
    x, y = curves[0]
    if len(curves) > 1:
        x = np.linspace(0, min(furthest, *(own[-1] for own, _ in curves)), 200)
        tpr = np.stack([np.interp(x, *curve) for curve in curves])
        axes.fill_between(x, tpr.min(0), tpr.max(0), color=style["color"], alpha=0.15, lw=0)
        y = tpr.mean(0)
    axes.plot(x, y, **style)
    return bool((np.diff(y[x <= furthest]) < 0).any())

"""Methods side by side: the paper's Fig. 3, left and right, and its Table 1 as a picture.

A method has the same colour, line and marker wherever the same methods are given in the same order,
so that it can be followed in grey. Hollow markers are the paper's own figures, on its own scans.
"""

import textwrap

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from weakunet.figures.overlay import (
    GREEN,
    OUTLINE,
    busiest_slices,
    draw_rings,
    line_style,
    new_figure,
    save_figure,
    show_slice,
)

HEAT, ABOVE = "inferno", "#00E5FF"
HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 9}


def method_maps(path, image, maps, thresholds, centres_zyx, spacing_mm, slice_index=None):
    """The paper's Fig. 3, left: the maps of all methods on one scan, in the same slice.

    Maps are shown as the maximum over z - 1, z, z + 1, each from its own 1st to its own 99.9th
    percentile over the scan, which its colour bar states. Outlined is what reaches its threshold,
    ringed (radius 3 voxels) the truth in those slices.

    Parameters
    ----------
    image : (D, H, W)
    maps : name -> (D, H, W), the name as it is to be printed
    thresholds : name -> level, or None where nothing is to be outlined; may lack names
    centres_zyx : (m, 3) voxel indices of the lesions
    spacing_mm : (z, y, x), None: axes in voxels
    slice_index : z; None: the slice with the most lesions, the middle one where there are none
    """
    z = busiest_slices(centres_zyx, len(image), 1)[0] if slice_index is None else slice_index
    columns = min(4, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    dy, dx = (1.0, 1.0) if spacing_mm is None else spacing_mm[1:]
    tall = np.clip(2.5 * image.shape[1] * dy / (image.shape[2] * dx), 1.2, 4.5)
    figure = new_figure(11, (tall + 1.0) * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).reshape(-1)
    slab = slice(max(0, z - 1), z + 2)
    shown = {f"image, slice z = {z}": (image[z], image.min(), image.max())}
    shown |= {name: (array[slab].max(0), *_own_scale(array)) for name, array in maps.items()}
    for k, (name, (axial, low, high)) in enumerate(shown.items()):
        drawn, *_ = show_slice(axes[k], axial, spacing_mm, low, high, HEAT if k else "gray")
        _colour_bar(figure, axes[k], drawn)
        axes[k].set_title(textwrap.fill(name, 32), fontsize=10)
        if k and thresholds.get(name) is not None:
            _outline(axes[k], axial >= thresholds[name], dy, dx)
        size = draw_rings(axes[k], centres_zyx, z, dy, dx)
    _label(axes, columns, len(shown), "voxels" if spacing_mm is None else "mm")
    lines = {f"truth (radius {size})": GREEN, "reaches the method's own threshold": ABOVE}
    style = {"linewidth": 1.6, "path_effects": OUTLINE}
    handles = [Line2D([], [], color=shade, label=name, **style) for name, shade in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def _own_scale(array):
    low, high = np.percentile(array, [1, 99.9])
    return (low, high) if high > low else (array.min(), array.max())


def _colour_bar(figure, panel, drawn):
    bar = figure.colorbar(drawn, ax=panel, orientation="horizontal", aspect=30, pad=0.02)
    low, high = drawn.get_clim()
    bar.set_ticks(ends := [low, (low + high) / 2, high], labels=[f"{value:.3g}" for value in ends])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    for text, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        text.set_horizontalalignment(side)  # the outer two would run into the next panel's


def _label(axes, columns, used, unit):
    """Label the outer panels; empty those left over."""
    for k, panel in enumerate(axes):
        panel.tick_params(labelsize=8)
        if k >= used:
            panel.axis("off")
        if k >= len(axes) - columns:
            panel.set_xlabel(f"x ({unit})", fontsize=9)
        if k % columns == 0:
            panel.set_ylabel(f"y ({unit})", fontsize=9)


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
    curves : method -> list of dict fp_per_scan, tpr (see metrics.froc_by_count), or a list of such
        lists, one a seed
    operating : method -> (fp_per_scan, tpr), a filled marker; may lack methods
    paper : method -> (fp_per_scan, tpr) as published, a hollow marker; may lack methods
    furthest : FPav at the right end; None: half as far again as the furthest marker
    """
    paper = paper or {}
    ends = [x for x, _ in [*operating.values(), *paper.values()] if np.isfinite(x)]
    furthest = furthest or 1.5 * max([1.0, *ends])
    seeds = {method: _by_seed(curve) for method, curve in curves.items()}
    figure = new_figure(8.8, 4.8)
    axes = figure.subplots()
    handles = []
    for k, method in enumerate(curves):
        _draw_curves(axes, seeds[method], furthest, line_style(k, marker=None, linewidth=1.8))
        if method in operating:
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
    axes.set(xlim=(0, furthest), ylim=(0, 1.02))
    axes.set_xlabel("FPav (false positives per scan)")
    axes.set_ylabel("TPR (fraction of the lesions found)")
    several = any(len(own) > 1 for own in seeds.values())
    band = "; band: lowest to highest seed" if several else ""
    axes.set_title(f"line: the count multiplied{band}", fontsize=10)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _by_seed(curve):
    return [curve] if curve and isinstance(curve[0], dict) else list(curve)


def _draw_curves(axes, seeds, furthest, style):
    """Draw one method's curve, or the mean of its seeds with their band."""
    curves = []
    for seed in seeds:
        x, y = np.array([(0, 0), *((at["fp_per_scan"], at["tpr"]) for at in seed)], float).T
        order = np.lexsort((y, x))  # FPav need not grow with the count
        curves.append((x[order], y[order]))
    if len(curves) == 1:
        axes.plot(*curves[0], **style)
    elif curves:
        grid = np.linspace(0, min(furthest, *(x[-1] for x, _ in curves)), 200)
        tpr = np.stack([np.interp(grid, x, y) for x, y in curves])
        axes.plot(grid, tpr.mean(0), **style)
        axes.fill_between(grid, tpr.min(0), tpr.max(0), color=style["color"], alpha=0.15, lw=0)


def method_bars(path, blocks, paper=None):
    """Table 1 as a picture: TPR and FPav of each method with 95 % intervals, per block.

    Parameters
    ----------
    blocks : block (a global pooling, say) -> method -> dict tpr, tpr_ci95, fp_per_scan,
        fp_per_scan_ci95 (see metrics.detection_metrics); fractions
    paper : method -> (fp_per_scan, tpr) as published, or None
    """
    methods = list(dict.fromkeys(method for block in blocks.values() for method in block))
    figure = new_figure(9.6, 1.5 + 0.5 * len(methods))
    panels = figure.subplots(1, 2, sharey=True)
    columns = (("tpr", 1, 100, "TPR (%)"), ("fp_per_scan", 0, 1, "FPav (false positives per scan)"))
    for panel, (key, place, scale, label) in zip(panels, columns, strict=True):
        for k, (name, block) in enumerate(blocks.items()):
            rows = [i for i, method in enumerate(methods) if method in block]
            found = [block[methods[i]] for i in rows]
            at = np.array([scale * own[key] for own in found])
            low, high = np.array([np.multiply(scale, own[f"{key}_ci95"]) for own in found]).T
            apart = 0.32 * ((k + 0.5) / len(blocks) - 0.5)
            style = line_style(k, linestyle="none", markersize=7, capsize=3, label=name)
            error = np.maximum([at - low, high - at], 0)
            panel.errorbar(at, np.add(rows, apart), xerr=error, **style)
        rows = [i for i, method in enumerate(methods) if method in (paper or {})]
        if rows:
            published = [scale * paper[methods[i]][place] for i in rows]
            style = HOLLOW | {"color": "black", "marker": "D", "markersize": 7}
            panel.plot(published, rows, label="the paper, its own scans", **style)
        panel.set_xlabel(label)
        panel.set_xlim(0, 102 if key == "tpr" else None)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(methods)), [textwrap.fill(name, 32) for name in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)

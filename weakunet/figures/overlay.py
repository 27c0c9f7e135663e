"""Every picture the program writes.

True positives are green circles, false positives blue squares, false negatives red triangles
(the paper's colours in Fig. 2, in shades that the colour-blind tell apart, and shapes for those who
print in grey). Axes carry their units; voxels keep their proportions. The same data gives the same
bytes: no date, no version, no state kept between pictures.
"""

import numpy as np
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import ndimage

from weakunet.evaluation.metrics import RADIUS_VOX, match_detections
from weakunet.util.cli import atomic_path

# after Okabe and Ito's colour-blind-safe palette; the first three are seen on black as well
GREEN, BLUE, RED = "#00C48C", "#56B4E9", "#FF5A1F"
MARKS = {"true positives": ("o", GREEN), "false positives": ("s", BLUE)}
MARKS |= {"false negatives": ("^", RED), "detections": ("s", BLUE)}
TRAINING, VALIDATION = "#D55E00", "#0072B2"
LINES = (  # colour, line, marker of each method or series
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#000000", (0, (5, 1, 1, 1)), "v"),
    ("#B87A00", (0, (1, 1)), "P"),
    ("#3A9BD8", (0, (8, 2)), "X"),
    ("#6A3D9A", (0, (3, 1, 1, 1, 1, 1)), "p"),
    ("#7F7F7F", (0, (6, 2, 2, 2)), "*"),
    ("#8C564B", (0, (2, 2)), "<"),
    ("#D81B60", (0, (4, 1)), ">"),
    ("#556B2F", (0, (1, 3)), "h"),
)
OUTLINE = [patheffects.withStroke(linewidth=3.2, foreground="black")]  # seen on bright and on dark


def new_figure(width, height, layout="constrained"):
    """An empty figure of width x height inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Write the figure to `path` as PNG, atomically and without anything but the picture."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def line_style(k, **changed):
    """Colour, line and marker of the k-th method or series."""
    colour, line, marker = LINES[k % len(LINES)]
    return {"color": colour, "linestyle": line, "marker": marker, "markersize": 9} | changed


def show_slice(panel, axial, spacing_mm, low=0.0, high=1.0, cmap="gray"):
    """Show an axial slice (H, W) or (H, W, 3), x to the right, y upwards, in mm if known.

    Returns: the drawn image, dy, dx.
    """
    dy, dx = (1.0, 1.0) if spacing_mm is None else spacing_mm[1:]
    h, w = axial.shape[:2]
    extent = (-0.5 * dx, (w - 0.5) * dx, -0.5 * dy, (h - 0.5) * dy)
    style = {"cmap": cmap, "origin": "lower", "interpolation": "nearest"}
    style |= {"vmin": low, "vmax": max(high, low + 1e-9)}
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    return panel.imshow(axial, extent=extent, **style), dy, dx


def overlay(path, image, heatmap, labels, lesions_zyx=None, spacing_mm=None, **radius):
    """The paper's Fig. 2: image, heatmap with marks, segmentation; up to three axial slices.

    The slices are those with the most lesions and detections, each shown with the marks of the
    slices next to it: the image at z, heatmap and segmentation as maxima over z - 1, z, z + 1.

    Parameters: image, heatmap, labels (D, H, W), labels as in `Detections`; lesions_zyx (m, 3)
    voxel indices, None where the truth is not known (then detections are not judged); spacing_mm
    (z, y, x), None: axes in voxels; radius in voxels or radius_mm, of a hit and the truth's rings.
    """
    marks, colour_of = judge_detections(labels, lesions_zyx, spacing_mm, **radius)
    slices = busiest_slices(np.vstack(list(marks.values())), len(image))
    dy, dx = (1.0, 1.0) if spacing_mm is None else spacing_mm[1:]
    tall = np.clip(3.2 * image.shape[1] * dy / (image.shape[2] * dx), 2, 7)
    height = tall * len(slices) + 1.2
    figure = new_figure(10.5, height, layout=None)  # the margins by hand: half the time
    figure.subplots_adjust(0.07, 0.85 / height, 0.99, 1 - 0.35 / height, 0.04, 0.06)
    axes = figure.subplots(len(slices), 3, squeeze=False, sharex=True, sharey=True)
    unit = "voxels" if spacing_mm is None else "mm"
    for row, z in zip(axes, slices, strict=True):
        slab = slice(max(0, z - 1), z + 2)
        show_slice(row[0], image[z], spacing_mm, image.min(), image.max())
        show_slice(row[1], heatmap[slab].max(0), spacing_mm, *np.percentile(heatmap, [1, 99.9]))
        show_slice(row[2], colour_of[labels[slab].max(0)], spacing_mm)
        size = draw_rings(row[0], () if lesions_zyx is None else lesions_zyx, z, dy, dx, **radius)
        for name, points in marks.items():
            points = near_slice(points, z)
            row[1].plot(points[:, 2] * dx, points[:, 1] * dy, **_style(name))
        front = f"y, towards the front ({unit})"
        row[0].set_ylabel(front if len(image) == 1 else f"slice z = {z}\n{front}")
    truth = "" if lesions_zyx is None else f", truth ringed (radius {size})"
    titles = ("image" + truth, "heatmap, highest of z − 1, z, z + 1", "segmentation, same slices")
    if len(image) == 1:  # one slice was cut out, or the image is 2-D
        titles = (titles[0], "heatmap", "segmentation")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel(f"x, towards the patient's right ({unit})")
    counted = [(name, f"{name} ({len(points)} in the scan)") for name, points in marks.items()]
    handles = [Line2D([], [], label=label, **_style(name)) for name, label in counted]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _style(name):
    marker, colour = MARKS[name]
    style = {"linestyle": "none", "marker": marker, "markersize": 9, "markerfacecolor": "none"}
    return style | {"markeredgecolor": colour, "markeredgewidth": 1.7, "path_effects": OUTLINE}


def draw_rings(panel, lesions_zyx, z, dy, dx, radius=RADIUS_VOX, radius_mm=None):
    """Ring the lesions in and next to slice z with a hit's radius; returns it in words."""
    rx, ry, size = radius * dx, radius * dy, f"{radius:g} voxels"
    if radius_mm is not None:
        rx, ry, size = radius_mm, radius_mm, f"{radius_mm:g} mm"
    limits = {"xlim": panel.get_xlim(), "ylim": panel.get_ylim()}
    angle = np.linspace(0, 2 * np.pi, 60)
    for _, y, x in near_slice(lesions_zyx, z):
        ring = x * dx + rx * np.cos(angle), y * dy + ry * np.sin(angle)
        panel.plot(*ring, color=GREEN, linewidth=1.6, path_effects=OUTLINE)
    panel.set(**limits)
    return size


def judge_detections(labels, lesions_zyx, spacing_mm, radius=RADIUS_VOX, radius_mm=None):
    """Centres (n, 3) of true positives, false positives, false negatives; colour of each label."""
    n = int(labels.max())
    found = ndimage.center_of_mass(labels > 0, labels, range(1, n + 1)) if n else []
    found = np.reshape(found, (-1, 3))
    if lesions_zyx is None:
        return {"detections": found}, np.array([(0, 0, 0), *[(1, 1, 1)] * n], float)
    colour_of = 0.75 * np.array([(0, 0, 0), *[to_rgb(BLUE)] * n])  # darker than green in grey
    lesions = np.reshape(lesions_zyx, (-1, 3))
    if radius_mm is None:
        pairs = match_detections(found, lesions, radius)
    else:
        pairs = match_detections(found, lesions, radius_mm, spacing_mm)
    hits, seen = [i for i, _ in pairs], [j for _, j in pairs]
    colour_of[np.array(hits, int) + 1] = to_rgb(GREEN)
    missed = {"false positives": np.delete(found, hits, 0)}
    missed |= {"false negatives": np.delete(lesions, seen, 0)}
    return {"true positives": found[hits]} | missed, colour_of


def busiest_slices(points, depth, most=3):
    """Up to `most` slices, each with the most points not yet shown; the middle one without any."""
    left, chosen = np.reshape(points, (-1, 3)), []
    while len(chosen) < most:
        near = [near_slice(left, z)[:, 0] - z for z in range(depth)]
        # of equally busy slices the one that lies closest to its points
        z = max(range(depth), key=lambda z: (len(near[z]), -np.abs(near[z]).sum()))
        if not len(near[z]):
            break  # nothing left, or only outside the scan
        chosen.append(z)
        left = left[np.abs(left[:, 0].round() - z) > 1]
    return sorted(chosen) or [depth // 2]


def near_slice(points, z):
    """Those of `points` (n, 3) that lie in slice z, z - 1 or z + 1."""
    points = np.reshape(points, (-1, 3))
    return points[np.abs(points[:, 0].round() - z) <= 1]


def preprocess_figure(path, steps, spacing_mm=None):
    """The middle axial slice of every step of section 2.1; steps: name -> (D, H, W), in order."""
    rows = -(-len(steps) // 4)
    figure = new_figure(11, 3.1 * rows)
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1)
    unit = "voxels" if spacing_mm is None else "mm"
    for panel, (name, array) in zip(axes, steps.items(), strict=False):
        low, high = float(array.min()), float(array.max())
        show_slice(panel, array[len(array) // 2], spacing_mm, low, high)
        panel.set_title(f"{name}: {low:.3g} to {high:.3g}", fontsize=9)
        panel.set_xlabel(f"x ({unit})", fontsize=9)
        panel.set_ylabel(f"y ({unit})", fontsize=9)
        panel.tick_params(labelsize=8)
    for panel in axes[len(steps) :]:
        panel.axis("off")
    save_figure(figure, path)


def training_curves(path, history, mean_error=None):
    """Error of the count on training and validation scans per epoch, and validation's r below it.

    Parameters: history (epochs, 5 or more), columns epoch, learning rate, training and validation
    mean squared error, validation r (as log.csv); mean_error: that of predicting the mean count.
    """
    history = np.asarray(history, float) if len(history) else np.zeros((0, 5))
    epoch, _, train, validation, r = history[:, :5].T
    figure = new_figure(7, 5.6)
    error, correlation = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    error.plot(epoch, train, "--s", color=TRAINING, markersize=4, label="training (augmented)")
    error.plot(epoch, validation, "-o", color=VALIDATION, markersize=4, label="validation")
    if mean_error is not None:
        error.axhline(mean_error, color="black", linestyle=":", label="predicting the mean")
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        label = f"lowest: {validation[best]:.2f} at epoch {epoch[best]:.0f}"
        error.plot(epoch[best], validation[best], "*", color="black", markersize=13, label=label)
    error.set_ylabel("mean squared error of the count\n(lesions²)")
    error.set_yscale("log")  # the first epochs can be ten times worse than all that follows
    for axis in (error.yaxis.set_major_formatter, error.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    error.tick_params(axis="y", which="minor", labelsize=8)
    error.legend(fontsize=9)
    correlation.plot(epoch, r, "-o", color=VALIDATION, markersize=4)
    correlation.axhline(0, color="grey", linewidth=0.8)
    correlation.set_ylim(min(-0.05, np.nanmin(np.append(r, 0)) - 0.05), 1.05)
    correlation.set_ylabel("r of true and predicted\ncount, validation")
    correlation.set_xlabel("epoch")
    correlation.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for panel in (error, correlation):
        panel.grid(alpha=0.3)
    save_figure(figure, path)

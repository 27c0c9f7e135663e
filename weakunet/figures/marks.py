"""Found, missed, false and merged: how every picture marks them, by shape as well as by colour.

    true positive   green circle     a detection that was matched with a lesion
    false positive  blue square      a detection that was not
    false negative  red triangle     a lesion without a detection
    merged          yellow diamond   a false negative inside a detection whose centre was matched
                                     with another lesion, or lies too far away

Lesions have a white ring with the radius of a hit, whether found or not.
"""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from scipy import ndimage

from weakunet.evaluation.metrics import PAPER_TOLERANCE, match_detections
from weakunet.figures.drawing import BLUE, GREEN, OUTLINE, RED, YELLOW, near_slice

TRUTH = "#FFFFFF"  # of the rings
MARKS = {  # marker and colour
    "true positives": ("o", GREEN),
    "false positives": ("s", BLUE),
    "false negatives": ("^", RED),
    "merged": ("D", YELLOW),
    "detections": ("s", BLUE),
}
MEANING = {
    "true positives": "true positives: detections matched with a lesion",
    "false positives": "false positives: detections matched with none",
    "false negatives": "false negatives: lesions missed",
    "merged": "merged: lesions missed inside a detection centred elsewhere",
    "detections": "detections (where the lesions are is not known)",
}


def judge_detections(labels, lesions_zyx, spacing_mm, tolerance=PAPER_TOLERANCE):
    """Match the components of a label image with the lesions.

    Parameters: labels (D, H, W) as in `Detections`; lesions_zyx (m, 3) voxel indices, None where
    they are not known; spacing_mm (z, y, x).
    Returns: name of a mark -> its places (n, 3); the colour (n + 1, 3) of each label.
    """
    n = int(labels.max())
    found = ndimage.center_of_mass(labels > 0, labels, range(1, n + 1)) if n else []
    found = np.reshape(found, (-1, 3))
    if lesions_zyx is None:
        return {"detections": found}, np.array([(0, 0, 0), *[(1, 1, 1)] * n], float)
    lesions = np.reshape(lesions_zyx, (-1, 3))
    pairs = match_detections(found, lesions, *tolerance.of(spacing_mm))
    hits, seen = [i for i, _ in pairs], [j for _, j in pairs]
    missed = np.delete(lesions, seen, 0)
    at = np.floor(missed + 0.5).astype(int)
    inside = ((at >= 0) & (at < labels.shape)).all(1)
    inside[inside] = labels[tuple(at[inside].T)] > 0
    marks = {"true positives": found[hits], "false positives": np.delete(found, hits, 0)}
    marks |= {"false negatives": missed[~inside], "merged": missed[inside]}
    colour_of = 0.75 * np.array([(0, 0, 0), *[to_rgb(BLUE)] * n])  # darker than green in grey
    colour_of[np.array(hits, int) + 1] = to_rgb(GREEN)
    return marks, colour_of


def mark_style(name, size=9):
    """How `plot` draws marks of this name."""
    marker, colour = MARKS[name]
    style = {"linestyle": "none", "marker": marker, "markersize": size, "markerfacecolor": "none"}
    return style | {"markeredgecolor": colour, "markeredgewidth": 1.7, "path_effects": OUTLINE}


def draw_marks(panel, marks, z, dy, dx, size=9):
    """Draw the marks in and next to slice z."""
    for name, points in marks.items():
        points = near_slice(points, z)
        panel.plot(points[:, 2] * dx, points[:, 1] * dy, **mark_style(name, size))


def mark_handles(marks, numbers=True):
    """The legend's entries: every kind of mark, what it means, and how many the scan has."""
    labels = {name: MEANING[name] for name in marks}
    if numbers:
        labels = {name: f"{text} ({len(marks[name])} in the scan)" for name, text in labels.items()}
    return [Line2D([], [], label=label, **mark_style(name)) for name, label in labels.items()]


def ring_handle(tolerance=PAPER_TOLERANCE):
    """The legend's entry for the rings."""
    style = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "linestyle": "none"}
    style |= {"markeredgecolor": TRUTH, "markeredgewidth": 1.6, "path_effects": OUTLINE}
    return Line2D([], [], label=f"every lesion, found or not (radius {tolerance})", **style)


def draw_rings(panel, lesions_zyx, z, dy, dx, tolerance=PAPER_TOLERANCE):
    """Ring the lesions in and next to slice z with a hit's radius."""
    rx = tolerance.radius_mm or tolerance.radius * dx
    ry = tolerance.radius_mm or tolerance.radius * dy
    panel.autoscale(False)  # rings may reach beyond the slice
    angle = np.linspace(0, 2 * np.pi, 60)
    for _, y, x in near_slice(lesions_zyx, z):
        ring = x * dx + rx * np.cos(angle), y * dy + ry * np.sin(angle)
        panel.plot(*ring, color=TRUTH, linewidth=1.6, path_effects=OUTLINE)

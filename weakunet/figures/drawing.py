"""What all pictures share: colours, lines and marks, an empty figure, a slice, and the file.

Colours are told apart by the colour-blind, and every line and mark also by its shape. Axes carry
their units and voxels keep their proportions. The same data gives the same bytes: no date, no
version, no state kept between pictures.
"""

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

from weakunet.util.cli import atomic_path

# after Okabe and Ito's colour-blind-safe palette; these four are seen on black as well
GREEN, BLUE, RED, YELLOW = "#00C48C", "#56B4E9", "#FF5A1F", "#F0E442"
ABOVE = "#00E5FF"  # the outline of what reaches a threshold
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
    return Figure(figsize=(width, height), dpi=120, layout=layout)


def save_figure(figure, path):
    """Write the figure to `path` as PNG, atomically and without anything but the picture."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def line_style(k, **changed):
    """Colour, line and marker of the k-th method or series."""
    colour, line, marker = LINES[k % len(LINES)]
    return {"color": colour, "linestyle": line, "marker": marker, "markersize": 9} | changed


def show_slice(panel, axial, spacing_mm, low=0.0, high=1.0, cmap="gray"):
    """Show an axial slice (H, W) or (H, W, 3), x to the right, y upwards, in mm.

    spacing_mm: (z, y, x); None: in voxels. Returns: the drawn image, dy, dx.
    """
    dy, dx = (1.0, 1.0) if spacing_mm is None else spacing_mm[1:]
    h, w = axial.shape[:2]
    extent = (-0.5 * dx, (w - 0.5) * dx, -0.5 * dy, (h - 0.5) * dy)
    style = {"cmap": cmap, "origin": "lower", "interpolation": "nearest"}
    style |= {"vmin": low, "vmax": max(high, low + 1e-9)}
    panel.locator_params(nbins=5, steps=[1, 2, 5, 10], integer=True)
    return panel.imshow(axial, extent=extent, **style), dy, dx


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

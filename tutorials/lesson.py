"""What the lessons share and none is about: the clone on Python's path, training, pictures."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the clone
sys.path[:0] = [str(ROOT), str(ROOT / "data_tools"), str(ROOT / "tests")]

import numpy as np
from matplotlib.patches import Circle
from scipy import ndimage

from weakunet.figures.drawing import BLUE, save_figure
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import train
from weakunet.training.run import Run
from weakunet.training.start import new_network


def trained(scans, settings, upsampling=True):
    """A network trained on the counts of `scans` (split -> list), as `weakunet.train` does."""
    model = new_network(settings, upsampling=upsampling)
    with tempfile.TemporaryDirectory() as folder:
        train(Run(model, settings, Path(folder)), scans)
        return load_model(Path(folder) / "best.npz")  # of the epoch with the best validation


def save(figure, name):
    """Write a lesson's picture, and say where it is."""
    path = f"runs/tutorials/{name}.png"
    save_figure(figure, path)
    print(f"picture: {path}")


def show(panel, axial, scan, title, lesions=(), colour=BLUE, **style):
    """Show an axial map (H, W) of a scan in mm, lesions (n, 3) ringed with a hit's 3 voxels."""
    _, dy, dx = scan.volume.spacing_mm
    h, w = axial.shape[:2]
    extent = (-0.5 * dx, (w - 0.5) * dx, -0.5 * dy, (h - 0.5) * dy)
    drawn = panel.imshow(axial, extent=extent, origin="lower", **{"cmap": "gray"} | style)
    for _, y, x in lesions:
        ring = Circle((x * dx, y * dy), 3 * dx, fill=False, color=colour, linewidth=2)
        panel.add_patch(ring)
    panel.set(title=title, xlabel="x (mm)", ylabel="y (mm)")
    return drawn


def blurred(scan, sd_mm):
    """A scan, blurred by a Gaussian."""
    return ndimage.gaussian_filter(scan.volume.array, sd_mm / np.array(scan.volume.spacing_mm))

# %% [markdown]
# # 1. Volumes, axes and millimetres
#
# **Question.** A scan is an array of numbers. Which number belongs to which place in the head?
#
# **You will see** an affine turn voxel indices into millimetres, and the same scan stored in two
# ways. The picture shows one lesion as a file stores it, in voxels, and in millimetres.
#
# **Takes** about 2 seconds on 2 cores. All you need to know is numpy.

# %%
import tempfile
from pathlib import Path

import lesson
import matplotlib.pyplot as plt
import nibabel
import numpy as np

from weakunet.data import phantom, volumes
from weakunet.figures.drawing import BLUE

# %% [markdown]
# ## A volume is `array[z, y, x]`
#
# We take a simulated scan of the basal ganglia, because it comes with the true centres of its
# lesions. Everywhere in weakunet a volume is `(D, H, W)` = `(z, y, x)`, and x runs fastest:
# neighbours along x are neighbours in memory. The strides (in bytes) show it.

# %%
image, _, centres_zyx = phantom.simulate_scan("standard", np.random.default_rng(11))
image = np.ascontiguousarray(image)
print(f"array (D, H, W) = {image.shape}, {image.dtype}, strides {image.strides} bytes")
print(f"{len(centres_zyx)} lesions; the first is at (z, y, x) = {centres_zyx[0].round(2)} voxels")

# %% [markdown]
# ## From voxels to millimetres, by hand
#
# The **affine** says where a voxel is in the world. It is a 4 x 4 matrix `A` with
#
#     (x, y, z, 1) in mm  =  A (x, y, z, 1) in voxels
#
# Its first three columns are the steps, in mm, from a voxel to its neighbour along x, y and z. Its
# last column is the position of voxel (0, 0, 0). World millimetres are RAS+ here, as in NIfTI: x
# grows to the patient's Right, y to the front (Anterior), z to the top (Superior). One trap: the
# array is indexed z first, but the affine takes x first. So the order must be reversed, once.

# %%
scan, _ = phantom.raw_volumes(image, image > 0)
print(scan.affine)


def to_mm(affine, point_zyx):
    x, y, z = point_zyx[::-1]
    return (affine @ [x, y, z, 1])[:3]


by_hand_mm = np.array([to_mm(scan.affine, point) for point in centres_zyx])
difference_mm = np.abs(by_hand_mm - volumes.index_to_world(scan, centres_zyx)).max()
print(f"the first lesion is at (x, y, z) = {by_hand_mm[0].round(2)} mm")
assert difference_mm < 1e-9  # the package's function does the same to all points at once

# %% [markdown]
# ## Voxels are not cubes
#
# A voxel of this scan is 0.49 x 0.49 x 0.8 mm, as in the paper. A step along z is longer than a
# step along x. A distance counted in voxels ignores that.

# %%
print("voxel (z, y, x) in mm:", scan.spacing_mm)
for name, step in (("x", [0, 0, 6]), ("y", [0, 6, 0]), ("z", [6, 0, 0])):
    distance_mm = np.linalg.norm(np.multiply(step, scan.spacing_mm))
    print(f"6 voxels along {name}: {distance_mm:.2f} mm")

# %% [markdown]
# ## The same scan, stored differently
#
# A file may store its axes in any order, and each of them in either direction: 6 x 8 = 48 ways.
# Here our scan is stored as "IPL": the first axis runs downwards (Inferior), the second to the back
# (Posterior), the third to the Left. The numbers are in other places in memory, but the file's
# affine says where each belongs, so nothing is lost.

# %%
straight = nibabel.Nifti1Image(image.transpose(2, 1, 0), scan.affine)  # a file is indexed x first
turn = nibabel.orientations.ornt_transform(
    nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt("IPL")
)
turned = straight.as_reoriented(turn)
print("stored shape (i, j, k) =", turned.shape, "axes to", nibabel.aff2axcodes(turned.affine))

lesion_mm = by_hand_mm[0]
lesion_ijk = np.linalg.solve(turned.affine, [*lesion_mm, 1])[:3]  # the affine, inverted
print("the first lesion in that file: (i, j, k) =", lesion_ijk.round(2))

# %% [markdown]
# `read_volume` undoes it. It flips and permutes axes (it never interpolates) until x grows to the
# right, y to the front and z to the top, and returns `(z, y, x)`. Nothing else in weakunet needs to
# know how a file stores its axes. The volume remembers it, so that results can be written on the
# file's own grid.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "turned.nii.gz"
    nibabel.save(turned, path)
    read = volumes.read_volume(path)
assert np.array_equal(read.array, image)
assert np.allclose(read.affine, scan.affine, atol=1e-5)  # a file stores its affine in float32
assert np.allclose(volumes.index_to_file(read, centres_zyx[:1])[0], lesion_ijk, atol=1e-4)

# %% [markdown]
# ## The picture
#
# The ring always has a radius of 3 mm around the lesion's centre. Left: a slice of the file as it
# is stored, shown as if its axes were x and y. Middle: a coronal slice of the array, every voxel a
# square, seen from behind (the patient's right is on the right). Right: the same slice in
# millimetres. Only there is the ring a circle.

# %%
z, y, x = centres_zyx[0]
i, j, k = lesion_ijk
dz, dy, dx = scan.spacing_mm
radius_mm, angle = 3.0, np.linspace(0, 2 * np.pi, 200)
stored, coronal = np.asarray(turned.dataobj)[:, :, round(k)].T, image[:, round(y), :]
corner, opposite = to_mm(scan.affine, [-0.5] * 3), to_mm(scan.affine, np.array(image.shape) - 0.5)
figure, panels = plt.subplots(1, 3, figsize=(12.5, 4.4), layout="constrained")


def draw(panel, axes, shown, centre, step, extent=None):
    panel.imshow(shown, extent=extent, cmap="gray", origin="lower")
    across, up = centre
    ring = across + radius_mm / step[0] * np.cos(angle), up + radius_mm / step[1] * np.sin(angle)
    panel.plot(*ring, color=BLUE, linewidth=2)
    panel.set(**axes)


axes = {"title": "the file: stored[:, :, k]", "xlabel": "i (voxels)", "ylabel": "j (voxels)"}
draw(panels[0], axes, stored, (i, j), (dz, dy))
axes = {"title": "array[:, y, :]", "xlabel": "x (voxels)", "ylabel": "z (voxels)"}
draw(panels[1], axes, coronal, (x, z), (dx, dz))
axes = {"title": "in millimetres", "xlabel": "x, to the right (mm)", "ylabel": "z, to the top (mm)"}
extent_mm = (corner[0], opposite[0], corner[2], opposite[2])
draw(panels[2], axes, coronal, lesion_mm[[0, 2]], (1, 1), extent_mm)
figure.suptitle("One lesion, ringed at 3 mm, three times")

print(f"3 mm are {radius_mm / dx:.2f} voxels along x and {radius_mm / dz:.2f} along z")
print(f"by hand and by weakunet, {len(centres_zyx)} lesions agree within {difference_mm:.1e} mm")
lesson.save(figure, "01_volumes")

# %% [markdown]
# **Try.** Store the scan as "LAS" and look at the affine: which number became negative, and why did
# the last column change too? Then write these functions yourself: exercise set `01_volumes`.

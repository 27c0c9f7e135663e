# %% [markdown]
# # 13. Your own scans
#
# **Question.** You have a folder of scans and a number for each. How do you get from there to
# lesions in millimetres, and what goes wrong on the way?
#
# **You will see** the whole path with the commands that you would type: check, prepare, train,
# predict, evaluate; and what they say about broken files. The scans are simulated, but they are
# NIfTI files on disk, and nothing below knows that. The last picture shows one scan, from the file
# to the lesions found in it.
#
# **Takes** about 60 seconds on 2 cores. Lesson 1 explains affines, lessons 9 to 11 the rest.

# %%
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lesson
import matplotlib.pyplot as plt
import nibabel
import numpy as np
from scipy import ndimage

from weakunet.evaluation.metrics import match_detections
from weakunet.figures.drawing import ABOVE, OUTLINE
from weakunet.figures.marks import MARKS

# %% [markdown]
# Everything goes into a temporary folder, which is gone at the end. `run` starts a command there,
# as your terminal would; `python` stands for this Python, `data_tools/` and `weakunet` for those of
# the clone. Progress lines are left out.

# %%
temporary = tempfile.TemporaryDirectory()
FOLDER = Path(temporary.name)


def run(command, code=0):
    """Run a command in FOLDER; show it and what it says. It must end with this exit code."""
    print(f"\n$ {command}")
    words = [sys.executable, *command.split()[1:]]
    words = [str(lesson.ROOT / word) if word.startswith("data_tools/") else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(lesson.ROOT)}
    ran = subprocess.run(words, cwd=FOLDER, env=environment, capture_output=True, text=True)
    said = (ran.stdout + ran.stderr).splitlines()
    print("\n".join(line for line in said if not re.search(r": \d+/\d+$", line)))
    assert ran.returncode == code, f"exit code {ran.returncode}"


def read_rows(name):
    with open(FOLDER / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(name, rows):
    with open(FOLDER / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def numbers(rows, *columns):
    """These columns of a table's rows as an array (n, columns)."""
    values = [[float(row[name]) for name in columns] for row in rows]
    return np.reshape(values, (-1, len(columns)))


# %% [markdown]
# ## The files
#
# This writes what you would have: an image per scan, a mask of the region in which lesions were
# counted, and a table with the counts. For evaluation only: a list of the lesions' centres. (With
# scans of your own, `data_tools/make_cohort.py` writes the table; a mask comes from FreeSurfer by
# `data_tools/roi_from_freesurfer.py`.)

# %%
sizes = {"train": 200, "val": 30, "test": 20}
numbers_of_scans = " ".join(f"--{split} {number}" for split, number in sizes.items())
run(f"python data_tools/make_phantom.py --out scans --seed 13 {numbers_of_scans}")
print(*(FOLDER / "scans/cohort.csv").read_text(encoding="utf-8").splitlines()[:3], sep="\n")
table = read_rows("scans/cohort.csv")
image = nibabel.load(FOLDER / "scans" / table[0]["image"])
low, high = image.get_fdata().min(), image.get_fdata().max()
print(f"{table[0]['image']}: {image.shape} voxels, raw intensities {low:.0f} to {high:.0f}")

# %% [markdown]
# ## What can be wrong
#
# Seven rows, six of them broken in ways that real cohorts are. The check reads every file once and
# says what is wrong with which, a line each; its exit code is 1, so that a script can stop there.
# Look at `twin`: the same voxels stand in train and in test under two names, and no file is
# damaged. A network would be tested on what it has learned.


# %%
def broken_cohort():
    """Copy seven scans to FOLDER/broken and damage six; returns the rows of their table."""
    folder = FOLDER / "broken"
    folder.mkdir()
    for path in (FOLDER / "scans").glob("train000[0-6]*"):
        shutil.copy(path, folder)
    names = ["good", "cut", "other-grid", "in-voxels", "twin", "no-count", "lost"]
    rows = [dict(row, subject=name) for name, row in zip(names, table, strict=False)]
    good, cut, other_grid, in_voxels, twin, no_count, lost = rows
    whole = (folder / cut["image"]).read_bytes()
    (folder / cut["image"]).write_bytes(whole[: len(whole) // 2])
    cut["split"] = "val"
    roi = nibabel.load(folder / other_grid["roi"])
    nibabel.save(roi.slicer[:, :, 1:], folder / other_grid["roi"])
    (folder / in_voxels["centres"]).write_text("x_mm,y_mm,z_mm\n20,17,9\n31,28,4\n")
    in_voxels["count"] = 2
    twin.update({key: good[key] for key in ("image", "roi", "centres", "count")}, split="test")
    no_count.update(count=999, centres="")
    lost["image"] = "lost.nii.gz"
    return rows


write_rows("broken/cohort.csv", broken_cohort())
run("python data_tools/check_cohort.py --data broken/cohort.csv", code=1)

# %% [markdown]
# The centres of `in-voxels` are voxel indices; world millimetres are asked for. The check can only
# see that they lie outside, and guesses at the other common reason.
#
# If you go on regardless: a scan that cannot be prepared is named and left out, the others are
# done, and the exit code is 2. Count the others: the twin is among them, and the 999. That is what
# the check is for. A table that cannot be right is refused as a whole, with its line.

# %%
run("python -m weakunet.preprocess --data broken/cohort.csv --out broken-prepared", code=2)
write_rows("broken/half.csv", [table[0] | {"count": "2.5"}])
run("python -m weakunet.preprocess --data broken/half.csv --out broken-half", code=2)

# %% [markdown]
# ## Check and prepare
#
# Now the whole cohort, as it was written.

# %%
run("python data_tools/check_cohort.py --data scans/cohort.csv")
run("python -m weakunet.preprocess --data scans/cohort.csv --out prepared")

# %% [markdown]
# What did that do to a scan? Section 2.1 of the paper: dilate the region and smooth its border,
# multiply, crop, trim the highest 1 %, rescale to [0, 1]. By hand:


# %%
def prepare_by_hand(image, region):
    """image, region (i, j, k) of a file -> the prepared scan, and the corner it was cropped at."""
    dilated = ndimage.distance_transform_edt(~region) <= 3
    weight = ndimage.gaussian_filter(dilated.astype(np.float32), 2, mode="constant")
    weight[weight < 0.01] = 0
    box = ndimage.find_objects(dilated.astype(int))[0]
    masked = (image * np.clip(weight, 0, 1))[box]
    highest = np.quantile(masked[dilated[box]], 0.99)
    return np.minimum(masked, highest) / highest, [side.start for side in box]


row = next(row for row in table if row["split"] == "test" and int(row["count"]) >= 4)
image = nibabel.load(FOLDER / "scans" / row["image"])
region = nibabel.load(FOLDER / "scans" / row["roi"]).get_fdata() > 0
prepared = nibabel.load(FOLDER / "prepared" / row["image"])
by_hand, corner = prepare_by_hand(image.get_fdata(dtype=np.float32), region)
difference = np.abs(by_hand - prepared.get_fdata()).max()
print(f"{row['subject']}: {image.shape} -> {prepared.shape}, by hand the same to {difference:.0e}")
assert difference < 1e-5
corner_mm = image.affine @ [*corner, 1]  # it was cropped, not moved: its place in the world stays
assert np.allclose(prepared.affine @ [0, 0, 0, 1], corner_mm, atol=1e-4)

# %% [markdown]
# ## Train
#
# A small network (8 maps on every level), on few scans, for a short time: enough to see the path.
# `--block` is the edge of the blocks whose maxima are averaged; `--eps` decides how large the first
# steps are. With scans of your own, begin with the defaults. The command ends with the figures of
# the test scans, which it has not looked at before.

# %%
train = "python -m weakunet.train --data prepared/cohort.csv --out run --seed 13"
run(f"{train} --epochs 14 --channels 8 8 8 --block 8 --eps 1e-6")

# %% [markdown]
# ## Predict on new scans
#
# Let the test scans be your new ones. Their rows name a mask, so predict takes them as RAW scans:
# it prepares each in memory and puts the results back on the scan's own grid.

# %%
new = [row for row in table if row["split"] == "test"]
write_rows("scans/new.csv", new)
model = "python -m weakunet.predict --model run/best.npz"
run(f"{model} --data scans/new.csv --out predictions")
subject = row["subject"]
print(*sorted(path.name for path in (FOLDER / "predictions").glob(f"{subject}*")), sep="\n")

# %% [markdown]
# Open them with nibabel, as any other program would. The heatmap lies on the scan's grid. A
# detection's i, j, k are voxel indices of the file, and its x, y, z are world millimetres: lesson
# 1's affine, applied by hand, turns one into the other.

# %%
heatmap = nibabel.load(FOLDER / "predictions" / f"{subject}_heatmap.nii.gz")
labels = nibabel.load(FOLDER / "predictions" / f"{subject}_lesions.nii.gz")
assert heatmap.shape == image.shape and np.allclose(heatmap.affine, image.affine, atol=1e-5)
detections = read_rows("predictions/detections.csv")
detections = [found for found in detections if found["subject"] == subject]
ijk, found_mm = numbers(detections, "i", "j", "k"), numbers(detections, "x_mm", "y_mm", "z_mm")
by_hand_mm = ijk @ image.affine[:3, :3].T + image.affine[:3, 3]
assert np.allclose(by_hand_mm, found_mm, atol=2e-3)  # the table has three decimals
for n, found in enumerate(found_mm, start=1):
    voxels = int((labels.get_fdata() == n).sum())
    print(f"detection {n}: {voxels:3d} voxels, (x, y, z) = {found} mm")

# %% [markdown]
# Another scanner stores the same scan in another order of its axes (lesson 1). Voxel indices are
# others then, millimetres are not.

# %%
for name in (row["image"], row["roi"]):
    stored = nibabel.load(FOLDER / "scans" / name)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(stored.affine), nibabel.orientations.axcodes2ornt("IPL")
    )
    nibabel.save(stored.as_reoriented(turn), FOLDER / f"turned{name[len(subject) :]}")
run(f"{model} turned.nii.gz --roi turned_roi.nii.gz --out predictions-turned")
turned = read_rows("predictions-turned/detections.csv")
turned_mm = numbers(turned, "x_mm", "y_mm", "z_mm")
print("first detection, i j k:", *ijk[0], "and turned:", *(turned[0][axis] for axis in "ijk"))
print(f"in mm they differ by at most {np.abs(turned_mm - found_mm).max():.3f}")
assert np.allclose(turned_mm, found_mm, atol=2e-3)

# %% [markdown]
# ## Evaluate
#
# With lists of centres, and only then, the detections can be judged. Compare with the end of the
# training: these are the same scans, prepared in memory this time. (There, the prepared images were
# judged as well, as method (a). Where the table names raw scans there are none to judge.)

# %%
evaluate = "python -m weakunet.evaluate --predictions predictions --data scans/new.csv"
run(f"{evaluate} --out judged")
judged = json.loads((FOLDER / "judged" / "metrics.json").read_text(encoding="utf-8"))
for name, value in judged["regression_fcn"].items():
    print(f"{name:18} {np.round(value, 3)}")

# %% [markdown]
# ## The picture
#
# One scan in world millimetres, in the slice with the most lesions. From left to right: as it came,
# with the region (dashed: its border; dotted: the box that was cropped); prepared; the heatmap, on
# the scan's own grid; and what was found, near this slice. Outlined is what stands out above the
# threshold.

# %%
truth_mm = numbers(read_rows(f"scans/{row['centres']}"), "x_mm", "y_mm", "z_mm")
truth_ijk = nibabel.affines.apply_affine(np.linalg.inv(image.affine), truth_mm)
pairs = np.array(match_detections(ijk, truth_ijk), int).reshape(-1, 2)
marked = {
    "true positives": found_mm[pairs[:, 0]],
    "false positives": np.delete(found_mm, pairs[:, 0], axis=0),
    "false negatives": np.delete(truth_mm, pairs[:, 1], axis=0),
}
step_mm = image.affine[2, 2]
heights_mm = image.affine[2, 3] + step_mm * np.arange(image.shape[2])
z_mm = max(heights_mm, key=lambda z: (abs(truth_mm[:, 2] - z) <= 1.5 * step_mm).sum())


def axial(values, affine):
    """Slice at z_mm and its extent in mm, of a file whose axes run to the right, front and top."""
    size_mm, first_mm = affine.diagonal()[:3], affine[:3, 3]
    low, high = first_mm - size_mm / 2, first_mm + (np.array(values.shape) - 0.5) * size_mm
    k = round((z_mm - first_mm[2]) / size_mm[2])
    return values[:, :, k].T, {"extent": (low[0], high[0], low[1], high[1]), "origin": "lower"}


def show(panel, nifti, title, colours="gray"):
    values, place = axial(nifti.get_fdata(), nifti.affine)
    panel.imshow(values, cmap=colours, **place)
    panel.set(title=title, xlabel="x, to the patient's right (mm)")
    return place["extent"]


def outline(panel, mask, colour, line):
    values, place = axial(mask, image.affine)
    panel.contour(values, [0.5], colors=colour, linestyles=line, linewidths=1.8, **place)


figure, panels = plt.subplots(1, 4, figsize=(16, 5), layout="constrained", sharex=True, sharey=True)
show(panels[0], image, f"the scan's file, slice z = {z_mm:.1f} mm")
left, right, back, front = show(panels[1], prepared, "prepared")
show(panels[2], heatmap, "heatmap, on the scan's grid", "inferno")
show(panels[3], image, "what was found")
outline(panels[0], region.astype(float), "white", "--")
box = {"fill": False, "color": "white", "linestyle": ":", "linewidth": 2}
panels[0].add_patch(plt.Rectangle((left, back), right - left, front - back, **box))
outline(panels[3], (labels.get_fdata() > 0).astype(float), ABOVE, "-")
for name, places in marked.items():
    marker, colour = MARKS[name]
    style = {"color": colour, "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.8}
    near = places[abs(places[:, 2] - z_mm) <= 1.5 * step_mm]
    label = f"{name} ({len(places)} in the scan)"
    panels[3].plot(near[:, 0], near[:, 1], marker, label=label, path_effects=OUTLINE, **style)
panels[0].set_ylabel("y, to the front (mm)")
figure.legend(*panels[3].get_legend_handles_labels(), loc="outside lower center", ncols=3)
temporary.cleanup()

rates = judged["regression_fcn"]
print(f"{len(new)} new scans: TPR {rates['tpr']:.1%} [{rates['tpr_ci95'][0]:.1%},", end=" ")
print(f"{rates['tpr_ci95'][1]:.1%}], {rates['fp_per_scan']:.2f} false positives per scan;", end=" ")
print(f"R2 of the count {rates['count_r2']:.2f}")
lesson.save(figure, "13_your_own_scans")

# %% [markdown]
# **Try.** Break a scan in a way of your own (NaN voxels, a mask of zeros, a 4-D file, a table saved
# by a spreadsheet) and see whether the check finds it. Then take real files: `data_tools` makes the
# table from a folder or a BIDS dataset. What these commands do with affines, registrations, other
# grids and masks, write yourself: exercise set `13_your_own_scans`.

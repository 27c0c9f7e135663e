# %% [markdown]
# # 13. Your own scans
#
# **Question.** You have a folder of scans and a number for each. How do you get from there to
# lesions in millimetres, and what goes wrong on the way?
#
# **You will see** the whole path with the commands that you would type: check, prepare, train,
# predict, evaluate; and what they say about broken files. The picture shows one scan (simulated,
# but a NIfTI file as yours) and the lesions found in it.
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

from weakunet.data import volumes
from weakunet.figures.drawing import ABOVE, busiest_slices, show_slice
from weakunet.figures.marks import draw_marks, draw_rings, judge_detections, mark_handles

# %% [markdown]
# Everything goes into a temporary folder, which is deleted at the end. `run` starts a command
# there, as your terminal would, with this Python and this clone. Progress lines are left out.

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
# counted, and a table with the counts. A list of the lesions' centres is there for evaluation only.
# (For scans of your own, `data_tools/make_cohort.py` writes the table, and
# `data_tools/roi_from_freesurfer.py` makes the masks.)

# %%
sizes = "--train 200 --val 30 --test 20"
run(f"python data_tools/make_phantom.py --out scans --seed 13 {sizes}")
print(*(FOLDER / "scans/cohort.csv").read_text(encoding="utf-8").splitlines()[:3], sep="\n")
table = read_rows("scans/cohort.csv")
image = nibabel.load(FOLDER / "scans" / table[0]["image"])
low, high = image.get_fdata().min(), image.get_fdata().max()
print(f"{table[0]['image']}: {image.shape} voxels, raw intensities {low:.0f} to {high:.0f}")

# %% [markdown]
# ## What can be wrong
#
# Here are seven rows, six of them broken as rows of real cohorts are. The check reads every file
# once and prints a line for each problem. Its exit code is 1, so that a script can stop there. Look
# at `twin`: no file is damaged, but the same voxels are in train and in test under two names. The
# network would be tested on what it has learned.


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
# The centres of `in-voxels` are voxel indices, where world millimetres are expected. The check only
# sees that they lie outside the scan, and suggests a common reason.
#
# What if you go on regardless? A scan that cannot be prepared is named and left out, the others are
# done, and the exit code is 2. But among the others are the twin and the count of 999. That is what
# the check is for. A table that cannot be right is refused as a whole, with the number of the line.

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
# What did that do to a scan? It followed section 2.1 of the paper: dilate the region and smooth its
# border, multiply, crop, trim the highest 1 %, rescale to [0, 1]. By hand:


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
corner_mm = image.affine @ [*corner, 1]  # it was cropped, not moved in the world
assert np.allclose(prepared.affine @ [0, 0, 0, 1], corner_mm, atol=1e-4)

# %% [markdown]
# ## Train
#
# A small network (8 maps on every level), on few scans, for a short time: enough to see the path.
# `--eps` sets the size of the first steps. With scans of your own, begin with the defaults: where
# volumes are large, training then starts from weights that learned on small simulated scans. The
# command ends with the scores on the test scans, which it has not used before.

# %%
train = "python -m weakunet.train --data prepared/cohort.csv --out run --seed 13"
run(f"{train} --epochs 10 --channels 8 8 8 --eps 1e-6")

# %% [markdown]
# ## Predict on new scans
#
# The test scans play your new ones. Their rows name a mask, so predict takes them as RAW scans: it
# prepares each in memory and puts the results back on the scan's own grid.

# %%
new = [row for row in table if row["split"] == "test"]
write_rows("scans/new.csv", new)
model = "python -m weakunet.predict --model run/best.npz"
run(f"{model} --data scans/new.csv --out predictions")
subject = row["subject"]
print(*sorted(path.name for path in (FOLDER / "predictions").glob(f"{subject}*")), sep="\n")

# %% [markdown]
# Open them with nibabel, as any other program would. The heatmap is on the scan's grid. A
# detection's i, j, k are voxel indices of the file, and its x, y, z are world millimetres. The
# affine turns one into the other. So the millimetres are the same however a scanner stores the axes
# (lesson 1). A single scan needs no table: `predict scan.nii.gz --roi mask.nii.gz`.

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
# ## Evaluate
#
# The detections can be scored only where there are lists of centres. Compare with the end of the
# training: these are the same scans, prepared in memory this time. (Method (a) is missing, because
# a table of raw scans names no prepared images.)

# %%
evaluate = "python -m weakunet.evaluate --predictions predictions --data scans/new.csv"
run(f"{evaluate} --out judged")
judged = json.loads((FOLDER / "judged" / "metrics.json").read_text(encoding="utf-8"))
for name, value in judged["regression_fcn"].items():
    print(f"{name:18} {np.round(value, 3)}")

# %% [markdown]
# ## The picture
#
# One scan in the slice with the most lesions. From left to right: as it came, with the border of
# the region (dashed); prepared, that is, cropped and masked; the heatmap on the scan's own grid;
# and what was found near this slice. The outline shows what is above the threshold.

# %%
files = {
    "scan": f"scans/{row['image']}",
    "region": f"scans/{row['roi']}",
    "prepared": f"prepared/{row['image']}",
    "heatmap": f"predictions/{subject}_heatmap.nii.gz",
    "labels": f"predictions/{subject}_lesions.nii.gz",
}
read = {name: volumes.read_volume(FOLDER / file) for name, file in files.items()}
scan, prepared = read["scan"], read["prepared"]
truth_mm = numbers(read_rows(f"scans/{row['centres']}"), "x_mm", "y_mm", "z_mm")
truth = volumes.world_to_index(scan, truth_mm)
z = busiest_slices(truth, len(scan.array), 1)[0]
z_mm = volumes.index_to_world(scan, [[z, 0, 0]])
prepared_z = round(volumes.world_to_index(prepared, z_mm)[0, 0])
marks, _ = judge_detections(read["labels"].array.astype(int), truth, scan.spacing_mm)

figure, panels = plt.subplots(1, 4, figsize=(16, 5), layout="constrained")
for panel, title, axial, colours in (
    (panels[0], f"the scan's file, slice z = {z}", scan.array[z], "gray"),
    (panels[1], "prepared", prepared.array[prepared_z], "gray"),
    (panels[2], "heatmap, on the scan's grid", read["heatmap"].array[z], "inferno"),
    (panels[3], "what was found", scan.array[z], "gray"),
):
    limits = axial.min(), axial.max()
    drawn, dy, dx = show_slice(panel, axial, scan.spacing_mm, *limits, colours)
    panel.set(title=title, xlabel="x, to the patient's right (mm)", ylabel="y, to the front (mm)")
style = {"extent": drawn.get_extent(), "linewidths": 1.8}
panels[0].contour(read["region"].array[z] > 0, [0.5], colors="white", linestyles="--", **style)
panels[3].contour(read["labels"].array[z] > 0, [0.5], colors=ABOVE, **style)
draw_rings(panels[3], truth, z, dy, dx)
draw_marks(panels[3], marks, z, dy, dx)
figure.legend(handles=mark_handles(marks), loc="outside lower center", ncols=2)
temporary.cleanup()

rates = judged["regression_fcn"]
print(f"{len(new)} new scans: TPR {rates['tpr']:.1%} [{rates['tpr_ci95'][0]:.1%},", end=" ")
print(f"{rates['tpr_ci95'][1]:.1%}], {rates['fp_per_scan']:.2f} false positives per scan;", end=" ")
print(f"R2 of the count {rates['count_r2']:.2f}")
lesson.save(figure, "13_your_own_scans")

# %% [markdown]
# **Try.** Break a scan in your own way (NaN voxels, a mask of zeros, a 4-D file, a table saved by a
# spreadsheet) and see whether the check finds it. Then take real files: `data_tools` makes the
# table from a folder or a BIDS dataset. Then write what these commands do with affines,
# registrations, other grids and masks yourself: exercise set `13_your_own_scans`.

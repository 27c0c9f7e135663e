"""Draw the pictures of gpu_ladder.md and count its table: the GPU's convolution, rung by rung.

    python tutorials/gpu_ladder.py

Writes images/ladder_*.png and, between two marks in gpu_ladder.md, the table. All but its last
column is counted from the kernels' own constants, so run this again when they change (a test
looks). MEASURED and BUSY are what one card said of one commit: see the page.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

from weakunet.figures.drawing import save_figure  # noqa: E402
from weakunet.gpu import cuda_source  # noqa: E402
from weakunet.util.cli import command, write_text  # noqa: E402

PAGE = Path(__file__).with_name("gpu_ladder.md")
IMAGES = Path(__file__).with_name("images")
MARKS = "<!-- counted: python tutorials/gpu_ladder.py -->\n", "<!-- end -->\n"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#D9D9D9"
TILED = cuda_source.constants("layers/conv/tiled")
TENSOR = cuda_source.constants("layers/conv/tensor")
FOLDED = cuda_source.constants("layers/conv/folded")

MEASURED = {
    "naive": "not timed",
    "tiled": "step 113.3 ms",
    "tensor": "32->32 forward 0.74 ms (bf16 0.45)",
    "folded": "step 22.7 ms (bf16 17.3)",
}
BUSY = {  # percent of the cycles, lowest and highest of the tensor kernels, as ncu reports them
    "no warp is ready": (66, 81),
    "the L2 cache moves data": (20, 60),
    "memory moves data": (15, 37),
    "tensor cores multiply": (15, 30),
}


def count():
    """Rows of the table: what a multiply-add costs on each rung, 32 to 32 channels, 3x3x3 taps."""
    voxels = np.prod([TILED[f"TILE_{axis}"] for axis in "XYZ"])
    halo = np.prod([TILED[f"TILE_{axis}"] + 2 for axis in "XYZ"])
    column, maps = TILED["TILE_Y"], TILED["MAPS"]
    warp_reads = 2 * (TENSOR["TILE_Y"] + 2) + 6 * 4  # of 128 bytes, for 3 taps along y
    warp_work = 3 * 2 * TENSOR["TILE_Y"] * 16 * 8 * 8  # multiply-adds
    each_input = halo / voxels / (27 * 32)  # for all 32 output channels of a block
    up_x, up_y, up_z, up_maps = (FOLDED[f"UP_{name}"] for name in ("X", "Y", "Z", "MAPS"))
    up_input = (up_x + 2) * (up_y + 2) * (up_z + 1) / (up_x * up_y * up_z * 4 * up_maps * 8)
    up_reads = 2 * 2 * 3 * (up_y + 1) + 2 * 2 * 4 * 4  # of 128 bytes: rows of x, then weights
    up_work = 2 * 2 * 4 * up_y * 16 * 8 * 8  # multiply-adds
    rows = [
        ("naive", "1", 8.0, 8.0, 27),
        ("tiled", f"{column * maps}", 4 * each_input, 4 * (column + 2 + 3 * maps) / (3 * 64), 27),
        ("tensor", f"{2 * column * 4}", 4 * each_input, 128 * warp_reads / warp_work, 27),
        ("folded", f"{2 * up_y * 4}", 4 * up_input, 128 * up_reads / up_work, 8),
    ]
    lines = [
        "| rung | sums per thread | bytes from the caches and memory, per multiply-add "
        "| bytes from shared memory or a cache, per multiply-add | taps | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {own} | {far:.2g} | {near:.2g} | {taps} | {MEASURED[name]} |"
        for name, own, far, near, taps in rows
    ]
    return "\n".join(lines) + "\n"


def voxels(axis, shape, corner=(0, 0), face="white", edge="#888888", size=1.0, **more):
    """Draw a grid of `shape` (rows, columns) squares from `corner` (x, y) on."""
    for row, column in np.ndindex(*shape):
        place = corner[0] + column * size, corner[1] + row * size
        axis.add_patch(Rectangle(place, size, size, facecolor=face, edgecolor=edge, lw=0.7, **more))


def frame(axis, corner, width, height, colour, **more):
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, lw=2.5, **more))


def panels(number, size, limits):
    """A figure with `number` plain axes of one size (width, height), rows from the top down."""
    figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.set(xlim=(-0.3, limits[0] + 0.3), ylim=(limits[1] + 0.3, -0.3), aspect="equal")
        axis.axis("off")
    return figure, axes[0]


def draw_naive():
    figure, (left, right) = panels(2, (9, 3.4), (12, 8))
    voxels(left, (8, 12))
    voxels(left, (3, 3), (3, 2), BLUE, alpha=0.45)
    voxels(left, (3, 3), (4, 2), ORANGE, alpha=0.45)
    left.set_title("x: what two neighbouring threads read, one plane")
    voxels(right, (8, 12))
    voxels(right, (1, 1), (4, 3), BLUE)
    voxels(right, (1, 1), (5, 3), ORANGE)
    right.set_title("y: what they write, one number each")
    return figure


def draw_tiled():
    wide, high = TILED["TILE_X"], TILED["TILE_Y"]
    figure, (left, right) = panels(2, (12, 4.3), (wide + 2, high + 2))
    voxels(left, (high + 2, wide + 2), face=GREY)
    voxels(left, (high, wide), (1, 1))
    frame(left, (0, 0), wide + 2, high + 2, BLUE)
    voxels(left, (high + 2, 3), (5, 0), ORANGE, alpha=0.5)
    left.set_title(
        "shared memory: one plane of the tile with its halo (grey),\n"
        "copied once; orange: what one thread reads of it"
    )
    voxels(right, (high, wide), (1, 1))
    voxels(right, (high, 1), (6, 1), ORANGE)
    frame(right, (1, 1), wide, high, BLUE)
    right.set_title(
        f"y: the block's tile; a thread owns a column of {high} voxels\n"
        f"in {TILED['MAPS']} output channels: {high * TILED['MAPS']} sums in registers"
    )
    return figure


def draw_tensor():
    figure, (axis,) = panels(1, (11, 5.2), (33, 17.5))
    voxels(axis, (16, 8), (0, 1), BLUE, alpha=0.35)
    voxels(axis, (8, 8), (12, 1), ORANGE, alpha=0.35)
    voxels(axis, (16, 8), (24, 1), GREEN, alpha=0.35)
    for t in range(4):  # lane 0 ... 3: g = 0
        for corner, rows, columns in (
            ((0, 1), (0, 8), (t, t + 4)),
            ((24, 1), (0, 8), (2 * t, 2 * t + 1)),
        ):
            for row in rows:
                for column in columns:
                    axis.text(
                        corner[0] + column + 0.5,
                        corner[1] + row + 0.55,
                        str(t),
                        ha="center",
                        va="center",
                        fontsize=8,
                    )
        for row in (t, t + 4):
            axis.text(12.5, 1 + row + 0.55, str(t), ha="center", va="center", fontsize=8)
    texts = (
        (4, 0.3, "A: the weights of one tap\n16 output x 8 input channels"),
        (16, 0.3, "B: x, moved by the tap\n8 input channels x 8 voxels"),
        (28, 0.3, "D: sums of y\n16 output channels x 8 voxels"),
    )
    for x, y, text in texts:
        axis.text(x, y, text, ha="center", va="bottom")
    for x, sign in ((10, "x"), (22, "into")):
        axis.text(x, 5, sign, ha="center", fontsize=13)
    axis.text(
        12,
        13,
        "one instruction of a warp:\n1024 multiply-adds.\nNumbers: what lanes 0 to 3\n"
        "hold in their registers",
        va="center",
    )
    axis.set_ylim(17.5, -2.6)
    return figure


def draw_folded():
    figure, (axis,) = panels(1, (9, 4), (12, 6.2))
    for i in range(6):
        voxels(axis, (1, 1), (2 * i, 4), GREY, size=2)
        axis.text(2 * i + 1, 5, f"c{i}", ha="center", va="center")
    for i in range(12):
        face = {5: ORANGE, 6: BLUE}.get(i, "white")
        voxels(axis, (1, 1), (i, 1.5), face)
        axis.text(i + 0.5, 2, f"c{i // 2}", ha="center", va="center", fontsize=9)
    for at, colour, names in ((4, ORANGE, ("w0", "w1", "w2")), (5, BLUE, ("w0", "w1", "w2"))):
        height = 0.3 if colour == ORANGE else 1.0
        for j, name in enumerate(names):
            axis.text(
                at + j + 0.5, height, name, ha="center", va="center", color=colour, weight="bold"
            )
    axis.text(4.9, 3.45, "odd: (w0 + w1) c2 + w2 c3", ha="right", color="#A66F00", weight="bold")
    axis.text(6.1, 3.45, "even: w0 c2 + (w1 + w2) c3", ha="left", color=BLUE, weight="bold")
    axis.text(
        0, -0.5, "upsampled, one axis: two voxels of y read three voxels each, but only two numbers"
    )
    axis.text(0, 6.6, "stored: the small tensor")
    axis.set_ylim(6.9, -0.9)
    return figure


def draw_zeros():
    figure, (left, right) = panels(2, (9, 3.3), (16, 8))
    voxels(left, (8, 16))
    voxels(left, (1, 1), (6, 5), ORANGE)
    left.set_title("dy behind a global maximum:\none voxel of a map is not zero")
    voxels(right, (8, 16), face=GREY)
    for row, column in np.ndindex(2, 4):
        corner = 4 * column, 4 * row
        if (row, column) == (1, 1):
            voxels(right, (4, 4), corner)
        frame(right, corner, 4, 4, BLUE)
    voxels(right, (3, 3), (5, 4), ORANGE, alpha=0.5)
    right.set_title("dx: only tiles whose halo meets it are computed,\nthe others (grey) are zero")
    return figure


def draw_latency():
    figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for row, (low, high) in enumerate(BUSY.values()):
        axis.barh(row, high - low, left=low, color=GREY if row else ORANGE)
        axis.text(high + 1, row, f"{low} to {high} %", va="center")
    axis.set(yticks=range(len(BUSY)), yticklabels=list(BUSY), xlim=(0, 100))
    axis.set_xlabel("percent of the cycles: nothing is busy, the warps wait")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


DRAWINGS = {"naive": draw_naive, "tiled": draw_tiled, "tensor": draw_tensor}
DRAWINGS |= {"folded": draw_folded, "zeros": draw_zeros, "latency": draw_latency}


def page(text):
    """The page's text with the table counted anew."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + count() + MARKS[1] + rest.split(MARKS[1])[1]


@command
def main(argv=None):
    """Write the pictures and the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    for name, draw in DRAWINGS.items():
        save_figure(draw(), IMAGES / f"ladder_{name}.png")
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

"""One page for a whole comparison: tables, pictures and a scan to scroll through.

The file is complete in itself (pictures as base64, plain CSS and JavaScript) and fetches nothing,
so it can be mailed and opened from disk. The page is `report.html` beside this module, the scan's
part `report_viewer.html`; what stands in double braces there is filled in here.
"""

import base64
import json
import re
import zlib
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from weakunet.evaluation.metrics import RADIUS_VOX
from weakunet.figures.drawing import ABOVE, busiest_slices
from weakunet.figures.marks import MARKS, MEANING, TRUTH, judge_detections
from weakunet.util.cli import write_text

HERE = Path(__file__).parent
# levels of grey and of heat: more would not be seen, and fewer make a smaller file
GREYS, HEATS = 128, 64
SHAPES = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds"}


def write_report(path, title, intro, tables, pictures, viewer):
    """Write a self-contained HTML page; all text is escaped.

    Parameters: tables, list of (caption, header, rows), all text; pictures, list of (path of a PNG,
    caption); viewer, a dict of one scan: image (D, H, W) in [0, 1], heatmap and labels (D, H, W),
    labels as in `Detections`, centres_zyx (m, 3) voxel indices, spacing_mm (z, y, x).
    """
    parts = {
        "title": escape(title),
        "intro": f"<p>{escape(intro)}</p>",
        "tables": "\n".join(_table(*table) for table in tables),
        "pictures": "\n".join(_picture(Path(name), caption) for name, caption in pictures),
        "viewer": _viewer(**viewer),
    }
    write_text(path, _fill("report.html", parts))


def _fill(template, parts):
    """Put `parts` in the places named in double braces, once: text with braces stays as it is."""
    text = (HERE / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], text)


def _table(caption, header, rows):
    kind = ' class="pairs"' if len(header) == 2 else ""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = [f"<thead><tr>{cells}</tr></thead><tbody>"]
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    body, caption = "\n".join(lines), escape(caption)
    table = f'<table{kind} aria-label="{caption}">{body}</tbody></table>'
    # a wide table is scrolled in its own frame, which the keyboard must be able to reach
    frame = f'<div class="wide" role="region" tabindex="0" aria-label="{caption}">'
    return f"<h3>{caption}</h3>\n{frame}{table}</div>"


def _picture(path, caption):
    content = path.read_bytes()
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    size = f'width="{width}" height="{height}"'  # the page does not jump while it loads
    image = f'<img {size} alt="{escape(caption)}" src="{source}">'
    return f"<figure>{image}\n<figcaption>{escape(caption)}</figcaption></figure>"


def _viewer(image, heatmap, labels, centres_zyx, spacing_mm):
    marks, _ = judge_detections(labels, centres_zyx, spacing_mm)
    low, high = (float(end) for end in np.percentile(heatmap, [1, 99.9]))
    scan = {
        "shape": np.shape(image),
        "spacing": [float(step) for step in spacing_mm],
        "radius": RADIUS_VOX,
        "start": int(busiest_slices(np.vstack([centres_zyx, *marks.values()]), len(image), 1)[0]),
        "image": _packed(np.clip(image, 0, 1), GREYS),
        "heatmap": _packed(np.clip((heatmap - low) / max(high - low, 1e-9), 0, 1), HEATS),
        "labels": _packed(np.where(labels > 0, (labels - 1) % 255 + 1, 0) / 255, 256),
        "colours": (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(int).tolist(),
        "ring": TRUTH,
        "outline": ABOVE,
        "truth": centres_zyx.round(2).tolist(),
        "marks": {},
    }
    named = []
    for name, points in marks.items():
        marker, colour = MARKS[name]
        mark = {"shape": SHAPES[marker], "colour": colour, "points": points.round(2).tolist()}
        scan["marks"][name] = mark
        named.append(f"{MEANING[name]} ({len(points)}): {SHAPES[marker]}")
    parts = {"marks": "; ".join(named).capitalize() + ".", "data": json.dumps(scan)}
    return _fill("report_viewer.html", parts | {"low": f"{low:.3g}", "high": f"{high:.3g}"})


def _packed(array, levels):
    """Values in [0, 1] as `levels` steps of 0..255, bytes in memory order, deflated, in base64."""
    steps = np.round(np.asarray(array) * (levels - 1)) * (255 / (levels - 1))
    return base64.b64encode(zlib.compress(steps.round().astype(np.uint8).tobytes(), 9)).decode()

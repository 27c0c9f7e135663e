"""The cohort table: the scans, their counts, and which of them train, validate and test.

One row per scan: `subject,image[,count][,roi][,split][,centres][,slice_z_mm]`. Paths are relative
to the table, other columns are ignored. `centres` names a table of lesion centres, `x_mm,y_mm,z_mm`
in world RAS+ millimetres; training never reads it. `slice_z_mm` is the world z of the ONE axial
slice in which lesions were counted, as in the paper (at the anterior commissure). The paper splits
1642 scans into 1289 / 323 / 30; without a `split` column, the split is about 70 / 15 / 15 %.
"""

import dataclasses
import math
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from weakunet.data.tables import is_blank, parse_count, parse_number, read_table
from weakunet.data.volumes import Volume
from weakunet.util.cli import InputError, one_line, path_from, write_csv

REQUIRED = ("subject", "image")
OPTIONAL = ("count", "roi", "split", "centres", "slice_z_mm")
SPLITS = ("train", "val", "test")
SHARES = (0.70, 0.15, 0.15)
MAX_NAME = 100  # letters in a subject's name: a file name has at most 255 bytes, endings included
FORBIDDEN = set('/\\<>:"|?*')  # in file names, on some system


@dataclasses.dataclass(frozen=True)
class Scan:
    """One row of the table."""

    subject: str
    image: Path
    count: int | None = None
    roi: Path | None = None
    split: str | None = None
    centres: Path | None = None
    slice_z_mm: float | None = None  # world z of the slice that was counted; None: the whole scan


@dataclasses.dataclass
class LoadedScan:
    """A prepared scan in memory: intensities in [0, 1], 0 outside the ROI."""

    subject: str
    volume: Volume
    count: int | None = None
    centres_zyx: np.ndarray | None = None  # (n, 3) voxel indices, fractions kept
    slice_index: int | None = None  # along z, the slice that was counted; None: the whole scan

    def __post_init__(self):
        if self.count == 0 and self.centres_zyx is None:
            self.centres_zyx = np.zeros((0, 3))  # no lesions need no list of centres


def read_cohort(path):
    """Read and check the table, but not the files that it names.

    What is blank is None. Raises InputError naming the table and the line.
    """
    path = Path(path)
    scans, seen = [], {}
    for line, row in read_table(path, REQUIRED, OPTIONAL):
        scan = _parse_row(f"{path}: line {line}", row, path.parent)
        first = seen.setdefault(unicodedata.normalize("NFC", scan.subject).casefold(), line)
        if first != line:
            raise InputError(
                f"{path}: line {line}: subject {scan.subject!r} is already on line {first} "
                "(upper and lower case are the same); give each scan its own name"
            )
        scans.append(scan)
    if not scans:
        raise InputError(f"{path}: no scans, only a header; add one row per scan")
    for column in ("split", "slice_z_mm"):
        without = [scan.subject for scan in scans if getattr(scan, column) is None]
        if 0 < len(without) < len(scans):
            raise InputError(
                f"{path}: subject {without[0]!r} has no {column} but others do; "
                "fill the column or leave it empty everywhere"
            )
    return scans


def _parse_row(where, row, folder):
    subject = row["subject"]
    odd = not subject.isprintable() or FORBIDDEN & set(subject) or len(subject) > MAX_NAME
    if not subject or subject[0] == "." or odd:
        raise InputError(
            f"{where}: subject {one_line(subject)!r} cannot name a file; use letters and digits"
        )
    texts = {name: row[name] for name in ("image", "roi", "centres")}
    if not all(text.isprintable() for text in texts.values()):
        raise InputError(f"{where}: a path holds a line break or control character; retype it")
    paths = {name: None if is_blank(text) else folder / text for name, text in texts.items()}
    if paths["image"] is None:
        raise InputError(f"{where}: no image; give the path of {subject}'s scan")
    if paths["roi"] == paths["image"]:
        raise InputError(f"{where}: the roi is the image itself; give the mask of the region")
    split = None if is_blank(row["split"]) else row["split"].lower()
    if split not in (None, *SPLITS):
        raise InputError(
            f"{where}: split {one_line(row['split'])!r} is unknown; use train, val or test"
        )
    try:
        count = parse_count(row["count"])
    except ValueError as error:
        raise InputError(
            f"{where}: {error}; correct it, or leave it empty for a scan that is only predicted on"
        ) from None
    z_mm = None if is_blank(row["slice_z_mm"]) else parse_number(row["slice_z_mm"])
    if z_mm is not None and math.isnan(z_mm):
        raise InputError(
            f"{where}: slice_z_mm {one_line(row['slice_z_mm'])!r} is not a number; give the "
            "slice's world z in mm, or leave it empty where the whole scan was counted"
        )
    return Scan(subject, count=count, split=split, slice_z_mm=z_mm, **paths)


def write_cohort(path, scans):
    """Write the table; paths relative to it where possible (not across Windows drives)."""
    header = ["subject", "image", "count"]
    for name in ("roi", "split", "centres", "slice_z_mm"):
        if any(getattr(scan, name) is not None for scan in scans):
            header.append(name)
    folder = Path(path).parent.resolve()

    def cell(value):
        if not isinstance(value, Path):
            return "" if value is None else value
        return path_from(folder, value.parent.resolve() / value.name)  # the name may be a link

    write_csv(path, header, [[cell(getattr(scan, name)) for name in header] for scan in scans])


def made_scan(scan, files, **changed):
    """The row of a scan whose image, roi and centres are now `files` (name -> path)."""
    names = "image", "roi", "centres"
    return dataclasses.replace(scan, **{name: files.get(name) for name in names}, **changed)


def split_cohort(scans, seed, path="cohort table"):
    """Give every scan a split: the table's own, or else a random one of 70 / 15 / 15 %.

    The draw depends on the seed and the set of subject names, not on the order of the rows. Scans
    of one person, BIDS sessions such as sub-01_ses-1 and sub-01_ses-2, stay together. Raises
    InputError (naming `path`) when a split is empty or a scan has no count.
    """
    uncounted = [scan.subject for scan in scans if scan.count is None]
    if uncounted:
        raise InputError(
            f"{path}: subject {uncounted[0]!r} has no count; training and testing need one "
            "for every scan, so fill it in or remove the row"
        )
    if all(scan.split is None for scan in scans):
        scans_of = Counter(person_of(scan) for scan in scans)
        people = sorted(scans_of)
        np.random.default_rng(seed).shuffle(people)
        n_val = max(1, round(SHARES[1] * len(scans)))
        n_test = max(1, round(SHARES[2] * len(scans)))
        split_of, drawn = {}, Counter()
        for person in people:
            fill = "val" if drawn["val"] < n_val else "test" if drawn["test"] < n_test else "train"
            split_of[person] = fill
            drawn[fill] += scans_of[person]
        scans = [dataclasses.replace(scan, split=split_of[person_of(scan)]) for scan in scans]
    for name in SPLITS:
        if not any(scan.split == name for scan in scans):
            raise InputError(
                f"{path}: the split {name!r} holds no scan; "
                "training needs at least one scan in each of train, val and test"
            )
    return scans


def person_of(scan):
    """Whose scan it is: in BIDS, what comes before the session in its name."""
    return scan.subject.partition("_ses-")[0]


def read_centres(path):
    """Read lesion centres: (n, 3) world mm as (x, y, z); n may be 0. Other columns are ignored."""
    columns = ("x_mm", "y_mm", "z_mm")
    points = []
    for line, row in read_table(path, columns):
        point = [parse_number(row[name]) for name in columns]
        if np.isnan(point).any():
            raise InputError(f"{path}: line {line}: a coordinate is not a number; correct the line")
        points.append(point)
    return np.array(points, np.float64).reshape(-1, 3)

"""From rows of a cohort table, files or a phantom to scans in memory."""

from weakunet.data.cohort import (
    LoadedScan,
    Scan,
    load_scan,
    read_centres,
    read_cohort,
    split_cohort,
)
from weakunet.data.phantom import simulate_cohort
from weakunet.data.prepare import crop_box, prepare
from weakunet.data.slices import cut_slab, find_slice
from weakunet.data.volumes import SUFFIXES, read_volume, world_to_index
from weakunet.util.cli import InputError, progress

PHANTOM_SCANS = {"train": 800, "val": 100, "test": 30}


def load_scans(settings, splits):
    """dict split -> list of LoadedScan: the cohort of --data, or a simulated one."""
    if settings.data is None:
        wanted = {split: PHANTOM_SCANS[split] for split in splits}
        return simulate_cohort(settings.phantom, wanted, settings.seed)
    table = split_cohort(read_cohort(settings.data), settings.seed, settings.data)
    rows = [scan for scan in table if scan.split in splits]
    loaded = [load_scan(scan) for scan in progress(rows, "reading scans")]
    return {
        split: [scan for row, scan in zip(rows, loaded, strict=True) if row.split == split]
        for split in splits
    }


def read_scan(scan, invert=False, slab_mm=None):
    """The scan as read (Volume), prepared (LoadedScan), and the second's box in the first.

    invert, slab_mm: how a raw scan is prepared, as for `weakunet.preprocess`.
    """
    if scan.roi is None:
        loaded = load_scan(scan)
        return loaded.volume, loaded, tuple(slice(0, n) for n in loaded.volume.array.shape)
    volume, roi = read_volume(scan.image), read_volume(scan.roi)
    prepared, box = prepare(volume, roi, invert, scan.image, scan.roi), crop_box(roi.array)
    k = find_slice(prepared, scan.slice_z_mm, scan.roi)
    if slab_mm is not None:
        prepared, first = cut_slab(prepared, k, slab_mm)
        k, first = k - first, box[0].start + first
        box = (slice(first, first + len(prepared.array)), *box[1:])
    centres_zyx = None
    if scan.centres is not None:
        centres_zyx = world_to_index(prepared, read_centres(scan.centres))
    return volume, LoadedScan(scan.subject, prepared, scan.count, centres_zyx, k), box


def scans_from_files(paths, roi, slice_z_mm):
    """A Scan per image path, named after the file. Raises InputError when two share a name."""
    scans = {}
    for path in paths:
        name = path.name
        for suffix in sorted(SUFFIXES, key=len, reverse=True):
            if name.lower().endswith(suffix):
                name = name[: -len(suffix)]
                break
        if name.casefold() in scans:
            raise InputError(
                f"{path}: a second scan called {name}; use --data, where each has its own name"
            )
        scans[name.casefold()] = Scan(name, path, roi=roi, slice_z_mm=slice_z_mm)
    return list(scans.values())

"""Predict counts and lesions on scans: heatmaps, label images, pictures and tables.

    python -m weakunet.predict --model runs/NAME/best.npz --data cohort.csv --out DIR
    python -m weakunet.predict --model runs/NAME/best.npz scan.nii.gz --roi mask.nii.gz --out DIR

A scan with an ROI mask is raw: it is prepared in memory as `weakunet.preprocess` does. A scan
without one must be prepared already. Images are written on the scan file's own grid. Run again, the
same command keeps what is done and predicts on what is missing or changed.
"""

import functools
from pathlib import Path

import numpy as np

from weakunet.data.cohort import read_cohort
from weakunet.data.load import read_scan, scans_from_files
from weakunet.data.prepare import places_in, put_back
from weakunet.data.slices import half_thickness, in_slice
from weakunet.data.volumes import index_to_file, index_to_world, require_spacing, write_volume
from weakunet.detection import output_files
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.predict_scan import predict_with_flips
from weakunet.figures.overlay import overlay
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import PRECISIONS, pick_precision
from weakunet.training.checkpoint import load_model
from weakunet.util import parts, resume
from weakunet.util.cli import InputError, command, new_parser, note, positive, write_csv
from weakunet.util.threads import cores


def parse_arguments(argv):
    """The command line as a namespace, its scans in `scans`."""
    parser = new_parser(__doc__, "python -m weakunet.predict")
    add, raw = parser.add_argument, "as for preprocess, for raw scans"
    add("images", nargs="*", type=Path, help="scans, instead of --data")
    add("--model", type=Path, required=True, help="best.npz of a training run")
    add("--data", type=Path, help="cohort table; a row with an roi is a raw scan")
    add("--roi", type=Path, help="ROI mask of the scans named on the command line")
    add("--slice-z-mm", type=float, help="those scans' slice, if lesions were counted in one")
    add("--invert", action="store_true", help=raw)
    add("--slab-mm", type=half_thickness, help=raw)
    add("--spacing-mm", type=positive, nargs=3, metavar=tuple("ZYX"), help=raw)
    add("--bids", action="store_true", help="name the files as BIDS derivatives")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU, if any")
    add("--precision", choices=PRECISIONS, default="auto", help="as for train")
    parts.add_arguments(parser, jobs=cores())
    args = parser.parse_args(argv)
    if (args.data is None) == (not args.images):
        parser.error("give either --data cohort.csv or one or more scans")
    for name in ("roi", "slice_z_mm"):
        if args.data is not None and getattr(args, name) is not None:
            raise InputError(
                f"{args.data}: --{name.replace('_', '-')} is for scans named on the command line; "
                f"the table has a column {name} for it"
            )
    if args.data:
        args.scans = read_cohort(args.data)
    else:
        args.scans = scans_from_files(args.images, args.roi, args.slice_z_mm)
    if args.slab_mm is not None and args.scans[0].slice_z_mm is None:
        raise InputError("--slab-mm: needs --slice-z-mm, or the table's column slice_z_mm")
    if args.bids:
        output_files.require_bids_names(scan.subject for scan in args.scans)
    return args


def files_of(scan, out, bids, **_):
    """A scan's own settings, the files it is predicted from, and those to write (for `parts`)."""
    files = output_files.output_paths(out, scan.subject, bids)
    return {"slice_z_mm": scan.slice_z_mm}, (scan.image, scan.roi, scan.centres), files


@backend.explain_out_of_memory()
def write_prediction(scan, files, model, bids, **preparation):
    """Predict on one scan and write its images, markups and picture.

    preparation: invert, slab_mm, spacing_mm of a raw scan, as for `read_scan`. Returns the row of
    predictions.csv and the rows of detections.csv, the highest score first; detection n is the
    label n of the label image.
    """
    model = load_once(*model)
    volume, prepared = read_scan(scan, **preparation)
    require_spacing(prepared.volume, model.spacing_mm, scan.image)
    if about := warn_of_larger_box(model, prepared.volume):
        note(f"{scan.image}: {about}")
    count, heatmap = predict_with_flips(model, prepared.volume, prepared.slice_index)
    # from the prepared scan's grid to the file's
    whole = put_back(heatmap, prepared.volume, volume, heatmap.min())
    write_volume(files["heatmap"], whole, volume)
    # only the slice that was counted, where it was one
    counted, heatmap = in_slice(prepared, heatmap)
    found = detect_lesions(heatmap, whole_count(count))
    write_volume(files["lesions"], put_back(found.labels, counted.volume, volume, 0), volume)
    rows = detection_rows(scan.subject, found, counted.volume, volume)
    places_mm = [row[5:8] for row in rows]
    output_files.write_markups(files["markups"], scan.subject, places_mm, found.scores)
    array, spacing_mm = counted.volume.array, counted.volume.spacing_mm
    overlay(files["overlay"], array, heatmap, found.labels, counted.centres_zyx, spacing_mm)
    return [scan.subject, count, len(rows), found.threshold], rows


@functools.lru_cache(maxsize=1)
def load_once(path, digest, device, precision):
    """The network, read once per process; `digest` tells a new file of the same name."""
    return load_model(path).to(device, precision)


def warn_of_larger_box(model, volume):
    """What to say of a scan whose box is larger than in training, where the count depends on it."""
    sizes, trained = volume.array.shape, model.shape
    averages = model.settings["pooling"] != "max" and not model.settings["region"]
    if averages and any(n > m for n, m in zip(sizes, trained, strict=True)):
        return (
            f"its box of {sizes} voxels is larger than the {trained} of training, and this "
            "network averages over the box: do not trust its count; crop the scan or train anew"
        )


def detection_rows(subject, found, part, volume):
    """Rows of DETECTIONS of what was found in `part`, prepared from the Volume `volume`."""
    centres = places_in(found.centres_zyx, part, volume)
    places = np.hstack([index_to_file(volume, centres), index_to_world(volume, centres)])
    places = (places.round(3) + 0.0).tolist()  # + 0.0: no -0.0
    return [
        [subject, i + 1, *places[i], float(found.scores[i]), round(float(mm3), 3)]
        for i, mm3 in enumerate(found.volumes_vox * part.voxel_mm3)
    ]


@command
def main(argv=None):
    """Predict: see the module's first lines."""
    args = parse_arguments(argv)
    out, table = args.out, args.out / "predictions.csv"
    if table.exists() and not (out / resume.SETTINGS).exists():
        raise InputError(f"{table}: the folder holds predictions already; choose another --out")
    if output_files.is_bids(out) and not args.bids:
        raise InputError(f"{out}: holds BIDS names; add --bids, or choose another --out")
    load_model(args.model)  # its error comes first
    device, digest = backend.pick_device(args.device), resume.file_digest(args.model)
    precision = pick_precision(args.precision, device)
    how = {name: getattr(args, name) for name in ("invert", "bids", "slab_mm", "spacing_mm")}
    settings = {"model": digest, **how, "device": device, "precision": precision}
    how["model"] = args.model, digest, device, precision
    write = functools.partial(write_tables, args)
    if device == "cuda":
        args.jobs = 1  # one process does all on a GPU
    parts.run_command(
        args, settings, files_of, write_prediction, how, "predict", table.name, write, mixed=True
    )
    parts.clear_parts(args, out / "detections.csv")


def write_tables(args, path, done):
    """Write predictions.csv (`path`) and detections.csv, or those of a part."""
    predictions = [row for *_, (row, _) in done]
    detections = [row for *_, (_, rows) in done for row in rows]
    if args.bids:
        output_files.describe_bids(args.out)
    path_detections = parts.part_table(args, args.out / "detections.csv")
    write_csv(path_detections, output_files.DETECTIONS, detections)
    write_csv(path, output_files.PREDICTIONS, predictions)
    print(f"{len(detections)} lesions in {len(predictions)} scans: {path_detections}")


if __name__ == "__main__":
    main()

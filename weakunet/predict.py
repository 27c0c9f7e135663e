"""Predict counts and lesions on scans: heatmaps, label images, pictures and tables.

    python -m weakunet.predict --model runs/NAME/best.npz --data cohort.csv --out DIR
    python -m weakunet.predict --model runs/NAME/best.npz scan.nii.gz --roi mask.nii.gz --out DIR

One pass of the network gives the count (eq. 2) and the heatmap (eq. 3 of section 2.2), mirrored
copies of the scan steady both (tta.py); the heatmap is thresholded so that its number of
connected components is the count. A scan with an ROI mask is
raw: it is prepared in memory as `weakunet.preprocess` does, and the results are put back on its
whole grid. A scan without one must be prepared already. Images go out on the scan file's own grid.
A run that was stopped or killed goes on with the same command.
Where the count is that of one slice (the table's slice_z_mm), detections are in that slice only.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from weakunet.data.cohort import read_cohort
from weakunet.data.load import read_scan, scans_from_files
from weakunet.data.prepare import places_in, put_back, voxel_size
from weakunet.data.slices import half_thickness, in_slice
from weakunet.data.volumes import (
    index_to_file,
    index_to_world,
    write_volume,
)
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.output_files import (
    DETECTIONS,
    PREDICTIONS,
    is_bids,
    output_paths,
    start_bids,
    write_markups,
)
from weakunet.detection.predict_scan import predict_copies
from weakunet.figures.overlay import overlay
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import PRECISIONS, pick_precision
from weakunet.training.checkpoint import load_model
from weakunet.util import resume
from weakunet.util.cli import InputError, command, progress, write_csv
from weakunet.util.processes import cores, map_processes


def write_prediction(model, scan, out, invert=False, bids=False, slab_mm=None, spacing_mm=None):
    """Predict on one scan and write its images and markups to the folder `out`.

    Returns its row of predictions.csv and its rows of detections.csv, the highest score first;
    detection n is the label n of the label image.
    """
    volume, prepared = read_scan(scan, invert=invert, slab_mm=slab_mm, spacing_mm=spacing_mm)
    count, heatmap = predict_copies(model, prepared.volume)
    paths = output_paths(out, scan.subject, bids)
    whole = put_back(heatmap, prepared.volume, volume, heatmap.min())
    write_volume(paths["heatmap"], whole, volume)
    # from here on in the slice that was counted, if it was one
    counted, heatmap = in_slice(prepared, heatmap)
    found = detect_lesions(heatmap, whole_count(count))
    write_volume(paths["lesions"], put_back(found.labels, counted.volume, volume, 0), volume)
    rows = detection_rows(scan.subject, found, counted.volume, volume)
    write_markups(paths["markups"], scan.subject, [row[5:8] for row in rows], found.scores)
    # where the lesions are known, the picture judges the detections
    spacing = counted.volume.spacing_mm
    shown = (counted.volume.array, heatmap, found.labels, counted.centres_zyx, spacing)
    overlay(paths["overlay"], *shown)
    return [scan.subject, count, len(rows), found.threshold], rows


def detection_rows(subject, found, part, volume):
    """Rows of DETECTIONS of what was found in `part`, prepared from the Volume `volume`."""
    centres = places_in(found.centres_zyx, part, volume)
    places = np.hstack([index_to_file(volume, centres), index_to_world(volume, centres)])
    places = (places.round(3) + 0.0).tolist()  # + 0.0: no -0.0
    return [
        [subject, i + 1, *places[i], float(found.scores[i]), round(float(mm3), 3)]
        for i, mm3 in enumerate(found.volumes_vox * part.voxel_mm3)
    ]


def parse_arguments(argv):
    """The command line as a namespace with the cohort in `scans`."""
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python -m weakunet.predict", description=about)
    parser.add_argument("images", nargs="*", type=Path, help="scans, instead of --data")
    parser.add_argument("--model", type=Path, required=True, help="best.npz of a training run")
    parser.add_argument("--data", type=Path, help="cohort table; a row with an roi is a raw scan")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--roi", type=Path, help="ROI mask of the scans named on the command line")
    parser.add_argument("--slice-z-mm", type=float, help="those scans' slice, if one was counted")
    parser.add_argument("--invert", action="store_true", help="as for preprocess, for raw T1 scans")
    parser.add_argument("--slab-mm", type=half_thickness, help="as for preprocess, for raw scans")
    about = "as for preprocess, for raw scans"
    parser.add_argument("--spacing-mm", type=voxel_size, nargs=3, metavar=tuple("ZYX"), help=about)
    parser.add_argument("--bids", action="store_true", help="name the files as BIDS derivatives")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="as for train")
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once (CPU)")
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
    return args


def predict_cohort(
    scans,
    model_path,
    out,
    device="cpu",
    precision="fp32",
    invert=False,
    bids=False,
    slab_mm=None,
    spacing_mm=None,
    n_jobs=1,
):
    """Predict on scans, leaving out those that are done; yield each one's rows, or its InputError.

    On a GPU one process does all; on CPU cores `n_jobs` share the scans. See `write_prediction`.
    """
    done = {}
    for scan in scans:
        results = output_paths(out, scan.subject, bids).values()
        done[scan.subject] = resume.noted(out, scan.subject, *_made_from(scan), results)
    todo = [scan for scan in scans if done[scan.subject] is None]
    if len(todo) < len(scans):
        print(f"going on: {len(scans) - len(todo)} of {len(scans)} scans are done", file=sys.stderr)
    how = {"out": out, "invert": invert, "bids": bids, "slab_mm": slab_mm}
    how["spacing_mm"] = spacing_mm
    if device == "cpu" and min(n_jobs, len(todo)) > 1:
        work = functools.partial(_predict_in_worker, model_path, precision, **how)
        results = map_processes(work, todo, n_jobs)
    else:
        model = load_model(model_path).to(device, precision)
        results = (_predict_or_fail(model, scan, **how) for scan in todo)
    for scan in scans:
        yield next(results) if done[scan.subject] is None else done[scan.subject]


def _made_from(scan):
    """The settings and the files that a scan's results are made from."""
    return {"slice_z_mm": scan.slice_z_mm}, (scan.image, scan.roi, scan.centres)


def _predict_or_fail(model, scan, out, **how):
    made_from = resume.inputs(*_made_from(scan))
    try:
        with backend.explain_out_of_memory():
            rows = write_prediction(model, scan, out, **how)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{scan.image}: not enough memory; use --jobs 1 or crop the scan")
    resume.note(out, scan.subject, made_from, rows)
    return rows


def _predict_in_worker(model_path, precision, scan, **how):
    return _predict_or_fail(_worker_model(model_path, precision), scan, **how)


@functools.cache
def _worker_model(model_path, precision):
    return load_model(model_path).to("cpu", precision)


@command
def main(argv=None):
    """Predict: see the module's first lines."""
    args = parse_arguments(argv)
    out, table = args.out, args.out / "predictions.csv"
    if table.exists() and not (out / resume.SETTINGS).exists():
        raise InputError(f"{table}: the folder holds predictions already; choose another --out")
    if is_bids(out) and not args.bids:
        raise InputError(f"{out}: holds BIDS names; add --bids, or choose another --out")
    load_model(args.model)  # its error comes first
    device = backend.pick_device(args.device)
    how = {name: getattr(args, name) for name in ("invert", "bids", "slab_mm", "spacing_mm")}
    how |= {"device": device, "precision": pick_precision(args.precision, device)}
    resume.begin(out, {"model": resume.file_digest(args.model), **how}, mixed=True)
    if args.bids:
        start_bids(out, [scan.subject for scan in args.scans])
    found = predict_cohort(args.scans, args.model, out, **how, n_jobs=args.jobs)
    results = [rows for rows, _ in zip(found, progress(args.scans, "predict"), strict=True)]
    failed = [
        (scan.subject, error)
        for scan, error in zip(args.scans, results, strict=True)
        if isinstance(error, InputError)
    ]
    if len(failed) == len(args.scans) == 1:
        raise failed[0][1]
    for subject, error in failed:
        print(f"failed: {subject}: {error}", file=sys.stderr)
    predicted = [rows for rows in results if not isinstance(rows, InputError)]
    if predicted:
        detections = [row for _, rows in predicted for row in rows]
        write_csv(out / "detections.csv", DETECTIONS, detections)
        write_csv(table, PREDICTIONS, [prediction for prediction, _ in predicted])
        print(f"{len(detections)} lesions in {len(predicted)} scans: {out / 'detections.csv'}")
    if failed:
        raise InputError(
            f"{out}: {len(failed)} of {len(args.scans)} scans failed, named above and left "
            "out of the tables; mend them and run the same command again"
        )


if __name__ == "__main__":
    main()

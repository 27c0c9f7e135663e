"""From one scan's file to all that is written of its prediction."""

import numpy as np

from weakunet.data.load import read_scan
from weakunet.data.prepare import places_in, put_back
from weakunet.data.slices import in_slice
from weakunet.data.volumes import index_to_file, index_to_world, require_spacing, write_volume
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.detection.output_files import output_paths, write_markups
from weakunet.detection.predict_scan import predict_with_flips
from weakunet.util.cli import note


def write_prediction(model, scan, out, draw, bids=False, **preparation):
    """Predict on one scan and write its images, markups and picture to the folder `out`.

    draw: figures.overlay. preparation: invert, slab_mm, spacing_mm of a raw scan, for `read_scan`.
    Returns the row of predictions.csv and the rows of detections.csv, the highest score first;
    detection n is the label n of the label image.
    """
    volume, prepared = read_scan(scan, **preparation)
    require_spacing(prepared.volume, getattr(model, "spacing_mm", None), scan.image)
    if about := warn_of_larger_box(model, prepared.volume):
        note(f"{scan.image}: {about}")
    paths = output_paths(out, scan.subject, bids)
    count, heatmap = predict_with_flips(model, prepared.volume, prepared.slice_index)
    # from the prepared scan's grid to the file's
    whole = put_back(heatmap, prepared.volume, volume, heatmap.min())
    write_volume(paths["heatmap"], whole, volume)
    # only the slice that was counted, where it was one
    counted, heatmap = in_slice(prepared, heatmap)
    found = detect_lesions(heatmap, whole_count(count))
    write_volume(paths["lesions"], put_back(found.labels, counted.volume, volume, 0), volume)
    rows = detection_rows(scan.subject, found, counted.volume, volume)
    write_markups(paths["markups"], scan.subject, [row[5:8] for row in rows], found.scores)
    spacing_mm = counted.volume.spacing_mm
    shown = (counted.volume.array, heatmap, found.labels, counted.centres_zyx, spacing_mm)
    draw(paths["overlay"], *shown)
    return [scan.subject, count, len(rows), found.threshold], rows


def warn_of_larger_box(model, volume):
    """What to say of a scan whose box is larger than in training, where the count depends on it."""
    sizes, trained = volume.array.shape, getattr(model, "shape", None)
    averages = model.settings["pooling"] != "max" and not model.settings["region"]
    if averages and trained and any(n > m for n, m in zip(sizes, trained, strict=True)):
        return (
            f"its box of {sizes} voxels is larger than the {tuple(trained)} of training, and this "
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

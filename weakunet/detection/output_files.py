"""The names of a prediction's files, and the files that other programs open.

Per scan, plain names in one folder or, on request, those of BIDS derivatives (from version 1.8):

    SUBJECT_heatmap.nii.gz   sub-X/[ses-Y/]anat/sub-X[_...]_desc-lesions_heatmap.nii.gz
    SUBJECT_lesions.nii.gz   sub-X/[ses-Y/]anat/sub-X[_...]_desc-lesions_dseg.nii.gz
    SUBJECT_lesions.mrk.json sub-X/[ses-Y/]anat/sub-X[_...]_desc-lesions_markups.mrk.json
    SUBJECT_overlay.png      sub-X/[ses-Y/]figures/sub-X[_...]_desc-lesions_overlay.png

A subject with a BIDS name (sub-01_ses-2_PDw) keeps its entities; the letters and digits of any
other become the label. BIDS knows label images (dseg) but neither heatmaps nor markups nor our
tables: .bidsignore lists those, so that a validator passes.
"""

import re

from weakunet.util.cli import InputError, write_json, write_text

BIDS_VERSION = "1.8.0"
DESCRIPTION = "dataset_description.json"
IGNORED = ("*.csv", "*.mrk.json", "*_heatmap.*", "figures", "settings.json", ".done")
MEANING = {  # of the images; BIDS inherits a description from the dataset's root
    "heatmap": "Sum of the network's last feature maps with the weights of the count; no unit",
    "dseg": "Detected lesions: connected components of the heatmap above the threshold at which "
    "their number is the predicted count; label n is detection n of detections.csv",
}
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)
PREDICTIONS = ("subject", "count_predicted", "n_detected", "threshold")
DETECTIONS = "subject,detection,i,j,k,x_mm,y_mm,z_mm,score,volume_mm3".split(",")


def output_paths(out, subject, bids=False):
    """The paths of a scan's files in the folder `out`: dict heatmap, lesions, markups, overlay."""
    if not bids:
        names = {"heatmap": "heatmap.nii.gz", "lesions": "lesions.nii.gz"}
        names |= {"markups": "lesions.mrk.json", "overlay": "overlay.png"}
        return {kind: out / f"{subject}_{name}" for kind, name in names.items()}
    entities = bids_entities(subject)
    levels = [entity for entity in entities[:2] if entity.startswith(("sub-", "ses-"))]
    folder, stem = out.joinpath(*levels), "_".join([*entities, "desc-lesions"])
    return {
        "heatmap": folder / "anat" / f"{stem}_heatmap.nii.gz",
        "lesions": folder / "anat" / f"{stem}_dseg.nii.gz",
        "markups": folder / "anat" / f"{stem}_markups.mrk.json",
        "overlay": folder / "figures" / f"{stem}_overlay.png",
    }


def bids_entities(subject):
    """["sub-01", "ses-2", ...] of a subject with a BIDS name; else ["sub-" + what BIDS allows].

    Raises InputError where no letter or digit is left.
    """
    *entities, last = subject.split("_")
    if "-" in last:  # otherwise it is the suffix, such as PDw
        entities.append(last)
    entity = re.compile(r"[a-zA-Z]+-[a-zA-Z0-9]+")
    if entities and entities[0].startswith("sub-") and all(map(entity.fullmatch, entities)):
        return [entity for entity in entities if not entity.startswith("desc-")]
    label = re.sub("[^a-zA-Z0-9]", "", subject.removeprefix("sub-"))
    if not label:
        raise InputError(f"subject {subject!r}: no letter or digit for a BIDS name; rename it")
    return [f"sub-{label}"]


def is_bids(out):
    """True if the predictions in `out` have BIDS names."""
    return (out / DESCRIPTION).is_file()


def require_bids_names(subjects):
    """Raise InputError where two subjects would get the same BIDS name."""
    first = {}
    for subject in subjects:
        name = "_".join(bids_entities(subject))
        if first.setdefault(name.casefold(), subject) != subject:
            raise InputError(
                f"subjects {first[name.casefold()]!r} and {subject!r} are both {name} in BIDS; "
                "rename one, or leave out --bids"
            )


def describe_bids(out):
    """Make `out` a BIDS derivatives dataset."""
    for kind, meaning in MEANING.items():
        write_json(out / f"desc-lesions_{kind}.json", {"Description": meaning})
    write_text(out / ".bidsignore", "\n".join(IGNORED) + "\n")
    description = {
        "Name": "Lesions found by weakunet",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "weakunet"}],
    }
    write_json(out / DESCRIPTION, description)


def write_markups(path, subject, centres_mm, scores):
    """Write points (n, 3), world RAS mm, as a point list for 3D Slicer; n may be 0.

    A point's label is its number in the label image and in detections.csv.
    """
    points = [
        {
            "id": str(i + 1),
            "label": str(i + 1),
            "description": f"score {score:.4g}",
            "position": [float(mm) for mm in centre],
            "positionStatus": "defined",
        }
        for i, (centre, score) in enumerate(zip(centres_mm, scores, strict=True))
    ]
    markup = {
        "type": "Fiducial",
        "name": f"{subject} lesions",
        "coordinateSystem": "RAS",
        "coordinateUnits": "mm",
        "controlPoints": points,
    }
    write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": [markup]})

"""Build the cohort table from a folder of scans, or a BIDS dataset, and a spreadsheet of counts.

    python data_tools/make_cohort.py --images 'scans/{subject}_T2.nii.gz' \\
        --rois 'rois/{subject}.nii.gz' --counts counts.tsv --subject-column id \\
        --count-column epvs_bg --out cohort.csv
    python data_tools/make_cohort.py --bids dataset --suffix PDw --count-column epvs_bg \\
        --out cohort.csv

How subjects and patterns are matched: cohort_files.py. In a BIDS dataset, scans are
`sub-*/[ses-*/]anat/sub-*_SUFFIX.nii[.gz]`, and counts come from `participants.tsv` or another
table, `--counts dataset/phenotype/epvs.tsv`. A scan goes into the table if it is the only one of
its subject and has a count and, where asked for, an ROI. What is left out is listed with the
reason. The split into train, val and test is drawn here, once, so that training and evaluation
agree; edit the column for your own. Check the table with check_cohort.py.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import cohort_files

from weakunet.data.cohort import SPLITS, Scan, read_cohort, split_cohort, write_cohort
from weakunet.util.cli import InputError, command, new_parser, one_line

SUFFIXES = ("PDw", "PD", "T2w", "T1w")


def find_bids_scans(folder, suffix=None, session=None):
    """Find a BIDS dataset's anatomical scans: {subject key: [(`sub-...`, Path), ...]}, sorted.

    Without a suffix, the one of `SUFFIXES` that is there. Raises InputError when there is none, or
    more than one. Runs and sessions of a subject are all returned.
    """
    paths = sorted(
        path
        for between in ("", "ses-*/")
        for end in (".nii", ".nii.gz")
        for path in folder.glob(f"sub-*/{between}anat/sub-*{end}")
    )
    if session is not None:
        within = f"ses-{cohort_files.session_key(session)}"
        paths = [path for path in paths if path.relative_to(folder).parts[1] == within]
    suffix_of = {path: re.sub(r"\.nii(\.gz)?$", "", path.name).rpartition("_")[2] for path in paths}
    there = sorted(set(suffix_of.values()))
    wanted = [suffix] if suffix else [name for name in SUFFIXES if name in there]
    if len(wanted) != 1 or wanted[0] not in there:
        of_session = f" of session {session}" if session is not None else ""
        raise InputError(
            f"{folder}: its anatomical scans{of_session} are {', '.join(there) or 'none'}; "
            "name one kind with --suffix, and check the folder and --session"
        )
    found = {}
    for path in paths:
        if suffix_of[path] == wanted[0]:
            name = path.relative_to(folder).parts[0]
            found.setdefault(cohort_files.subject_key(name), []).append((name, path))
    return found


def join(images, entries, rois=None, centres=None):
    """Join files and counts by subject.

    Parameters: images, rois, centres as from `find_files` (None: not asked for); entries as from
    `read_counts`.
    Returns: the Scans, sorted by subject, and what was left out, [(subject, reason), ...].
    """
    scans, left_out = [], []
    for key in sorted(images.keys() | entries.keys()):
        of_subject = images.get(key, [])
        entry = entries.get(key)
        name = of_subject[0][0] if of_subject else entry.name
        reason = _reason_to_leave_out(key, of_subject, entry, rois, centres)
        if reason:
            left_out.append((name, reason))
            continue
        roi, marked = (
            files[key][0][1] if files and key in files else None for files in (rois, centres)
        )
        scans.append(Scan(name, of_subject[0][1], entry.count, roi, None, marked, entry.slice_z_mm))
    return scans, left_out


def _reason_to_leave_out(key, of_subject, entry, rois, centres):
    if not of_subject:
        return "no scan"
    if entry is None:
        return f"no count for the scan {of_subject[0][1]}"
    for what, files in (
        ("scans", of_subject),
        ("ROIs", (rois or {}).get(key, [])),
        ("centres", (centres or {}).get(key, [])),
    ):
        if len(files) > 1:
            return f"{len(files)} {what}: {', '.join(str(path) for _, path in files)}"
    if rois is not None and key not in rois:
        return "no ROI"
    return entry.problem


def write_and_report(path, scans, left_out, hints=()):
    """Write the table; print what was left out, and any hints. InputError if nothing is left.

    Three or more scans are split into train, val and test; the same scans, in the same way.
    """
    for name, reason in left_out:
        print(f"left out: {one_line(name)}: {reason}")
    for hint in filter(None, hints):
        print(hint)
    if not scans:
        raise InputError(f"{path}: not written, no scan is left; see the reasons above")
    if len(scans) >= len(SPLITS):
        scans = split_cohort(scans, seed=0)
    write_cohort(path, scans)
    read_cohort(path)  # refuses a name that cannot be used
    print(f"wrote {len(scans)} scans, left out {len(left_out)}: {path}")


@command
def main(argv=None):
    """Write the cohort table the arguments ask for."""
    parser = new_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", help="pattern of the scans, with {subject}, in quotes")
    source.add_argument("--bids", type=Path, help="folder of a BIDS dataset")
    parser.add_argument("--suffix", help="BIDS: kind of scan, such as PDw or T2w")
    parser.add_argument("--session", help="BIDS: the session, where there are several")
    parser.add_argument("--rois", help="pattern of the regions of interest")
    parser.add_argument("--centres", help="pattern of the lists of centres (x_mm,y_mm,z_mm)")
    parser.add_argument("--counts", type=Path, help="spreadsheet as text; BIDS: participants.tsv")
    about = "column of the names (default: subject; BIDS: participant_id)"
    parser.add_argument("--subject-column", metavar="NAME", help=about)
    about = "column of the counts"
    parser.add_argument("--count-column", metavar="NAME", default="count", help=about)
    parser.add_argument(
        "--slice-column", metavar="NAME", help="world z (mm) of the one slice that was counted"
    )
    parser.add_argument("--out", type=Path, required=True, help="the table, replaced if it exists")
    args = parser.parse_args(argv)
    if args.bids:
        images = find_bids_scans(args.bids, args.suffix, args.session)
        counts = args.counts or args.bids / "participants.tsv"
        subject_column = args.subject_column or "participant_id"
    elif args.suffix or args.session or not args.counts:
        raise InputError("--images: needs --counts and neither --suffix nor --session; see --help")
    else:
        images, counts = cohort_files.find_files(args.images), args.counts
        subject_column = args.subject_column or "subject"
    entries = cohort_files.read_counts(
        counts, subject_column, args.count_column, args.slice_column, args.session
    )
    rois = cohort_files.find_files(args.rois) if args.rois else None
    centres = cohort_files.find_files(args.centres) if args.centres else None
    images = cohort_files.without_files(images, rois, centres)
    scans, left_out = join(images, entries, rois, centres)
    without = sum(scan.centres is None for scan in scans)
    if centres is not None and without:
        print(f"{without} of {len(scans)} scans have no list of centres")
    patterns = (args.images, images), (args.rois, rois), (args.centres, centres)
    hints = [cohort_files.prefix_hint(text, found, entries) for text, found in patterns if text]
    write_and_report(args.out, scans, left_out, hints)


if __name__ == "__main__":
    main()

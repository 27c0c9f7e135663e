"""Read everything that a cohort table names, once, and list what is wrong with it.

    python data_tools/check_cohort.py --data cohort.csv

In each scan (check_scan.py): files that cannot be read or hold NaN; image and region on different
grids; qform against sform; axes not at right angles; constant or unprepared intensities; an empty
region, or one that is not a mask; centres outside the image or the region, or twice, or not as many
as the count says; the slice that was counted. Across scans, compared with the median: voxel size,
tilt, volume of the region, intensity; missing counts, or far too high ones (999); the same voxels
under two names, or one person in two splits, which would leak from training into the test.

Exit code 0 when nothing is wrong, 1 when something is, 2 when the table itself cannot be read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from check_scan import Report, check_scan

from weakunet.data.cohort import SPLITS, person_of, read_cohort
from weakunet.util.cli import command, new_parser, progress
from weakunet.util.processes import map_processes
from weakunet.util.threads import cores

SPACING_FACTOR, VOLUME_FACTOR, LEVEL_FACTOR = 1.05, 2.0, 10.0  # allowed from the median
TILT_DEGREES = 15.0
COUNT_FACTOR = 5.0  # times the 90th percentile of the counts
FEW = 5  # scans: among fewer, equal counts are no surprise


def compare_scans(scans, reports):
    """Add to the Reports what shows only across scans; return the Report of the whole cohort."""
    whole = Report("(all)")
    _compare_numbers(reports, "spacing", "voxels (z, y, x) of {} mm", "spacing_mm", SPACING_FACTOR)
    _compare_numbers(reports, "roi", "region of {} mm3", "region_mm3", VOLUME_FACTOR)
    _compare_numbers(reports, "intensity", "median {} in the region", "level", LEVEL_FACTOR)
    _compare_directions(reports)
    _compare_with_earlier(scans, reports)
    _compare_counts(scans, reports, whole)
    splits = {scan.split for scan in scans}
    for split in SPLITS:
        if splits != {None} and split not in splits:
            whole.add("split", f"no scan in {split!r}")
    return whole


def _compare_numbers(reports, check, text, name, factor):
    """Name the scans with a number (or one of several) that is `factor` off the median."""
    known = [report for report in reports if getattr(report, name) is not None]
    if not known:
        return
    values = np.array([np.atleast_1d(getattr(report, name)) for report in known])
    median = np.median(values, axis=0)
    if median.min() <= 0:  # intensities around 0, as in CT: no factor says anything
        return
    off = (values > median * factor) | (values * factor < median)
    for i in np.flatnonzero(off.any(axis=1)):
        what = text.format(" x ".join(f"{value:.4g}" for value in values[i]))
        usual = " x ".join(f"{value:.4g}" for value in median)
        remedy = f"; preprocess --spacing-mm {usual.replace('x ', '')}" * (check == "spacing")
        known[i].add(check, f"{what}, the median is {usual}{remedy}")


def _compare_directions(reports):
    known = [report for report in reports if report.directions is not None]
    if not known:
        return
    usual = np.median([report.directions for report in known], axis=0)
    usual /= np.linalg.norm(usual, axis=0)
    for report in known:
        cosines = np.clip((report.directions * usual).sum(axis=0), -1, 1)
        tilt = np.degrees(np.arccos(cosines)).max()
        if tilt > TILT_DEGREES:
            what = f"tilted by {tilt:.0f} degrees against the cohort; register the scans"
            report.add("orientation", what)


def _compare_with_earlier(scans, reports):
    """Name scans with the voxels of an earlier one, and people who are in two splits."""
    first = {}  # content or person -> the first scan of it
    for scan, report in zip(scans, reports, strict=True):
        other = first.setdefault(report.content or scan, scan)
        if other is not scan:
            leak = f", one in {other.split}, one in {scan.split}" * (other.split != scan.split)
            report.add("duplicate", f"the same voxels as {other.subject!r}{leak}")
        other = first.setdefault(person_of(scan), scan)
        if other.split != scan.split:
            where = f"one in {other.split}, one in {scan.split}"
            report.add("split", f"the same person as {other.subject!r}, {where}")


def _compare_counts(scans, reports, whole):
    counts = np.array([scan.count for scan in scans if scan.count is not None])
    if not len(counts):
        whole.add("counts", "no scan has a count: they can only be predicted on")
        return
    limit = COUNT_FACTOR * max(1.0, np.percentile(counts, 90, method="lower"))
    for scan, report in zip(scans, reports, strict=True):
        if scan.count is None:
            report.add("counts", "no count")
        elif scan.centres is None and scan.count > limit:  # else check_scan has compared the two
            what = f"count {scan.count}, nine of ten scans have {limit / COUNT_FACTOR:g} or fewer"
            report.add("counts", f"{what}; does it stand for 'missing'?")
    if len(counts) >= FEW and counts.min() == counts.max():
        whole.add("counts", f"every count is {counts[0]}: nothing can be learned from it")


def _check_or_fail(scan):
    try:
        return check_scan(scan)
    except MemoryError:
        report = Report(scan.subject)
        report.add("image", f"{scan.image}: not enough memory; use --jobs 1 or crop the scan")
        return report


def print_table(reports):
    """Print one line per problem, in columns: subject, check, what is wrong."""
    rows = [(r.subject, check, what) for r in reports for check, what in r.problems]
    rows.insert(0, ("subject", "check", "what is wrong"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for subject, check, what in rows:
        print(f"{subject:{widths[0]}}  {check:{widths[1]}}  {what}")


@command
def main(argv=None):
    """Check the cohort; return 1 when anything is wrong and 0 when nothing is."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cohort table")
    parser.add_argument("--jobs", type=int, default=cores(), help="scans in memory at once")
    args = parser.parse_args(argv)
    scans = read_cohort(args.data)
    done = map_processes(_check_or_fail, scans, args.jobs)
    reports = list(progress(done, "check", total=len(scans)))
    whole = compare_scans(scans, reports)
    wrong = [report for report in [whole, *reports] if report.problems]
    if not wrong:
        print(f"{args.data}: {len(scans)} scans, nothing wrong")
        return 0
    print_table(wrong)
    number = sum(len(report.problems) for report in wrong)
    print(f"{args.data}: {len(scans)} scans, {number} things wrong")
    return 1


if __name__ == "__main__":
    sys.exit(main())

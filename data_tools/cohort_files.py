"""Which files belong to which subject, and what a spreadsheet says about them.

Shared by make_cohort.py and counts_from_masks.py. Two rules hold wherever subjects are matched:

* A pattern names a subject's file: `scans/{subject}_T2.nii.gz`. `{subject}` stands for the shortest
  text that fits, the same wherever it occurs; `*` stands for any text and `?` for any character,
  except `/`.
* Two names mean one subject when they differ only in case, in BIDS's `sub-`, or in leading zeros
  of a number, which spreadsheets drop: `sub-007`, `007` and `7`.

How tables and their numbers are read: weakunet/data/tables.py.
"""

import dataclasses
import glob
import math
import re
import unicodedata
from pathlib import Path

from weakunet.data.tables import parse_count, parse_number, read_table
from weakunet.util.cli import InputError


def subject_key(name):
    """The same text for all spellings of a subject."""
    name = unicodedata.normalize("NFC", name.strip()).casefold().removeprefix("sub-")
    return (name.lstrip("0") or "0") if name.isdecimal() else name


def find_files(pattern):
    """Find the files of a pattern: {subject key: [(subject as written, Path), ...]}, sorted.

    Raises InputError when the pattern lacks `{subject}` or no file fits it.
    """
    pattern = Path(pattern).expanduser().as_posix()
    if "{subject}" not in pattern:
        raise InputError(f"{pattern}: no {{subject}} in the pattern; put it where the name stands")
    wild, text = "", ""
    for token in re.split(r"(\{subject\}|\*|\?)", pattern):
        if token == "{subject}":
            wild += "*"
            text += "(?P=subject)" if "(?P<subject>" in text else "(?P<subject>[^/]+?)"
        elif token in ("*", "?"):
            wild += token
            text += "[^/]*" if token == "*" else "[^/]"
        else:
            wild += glob.escape(token)
            text += re.escape(token)
    found = {}
    for path in sorted(map(Path, glob.glob(wild))):
        match = re.fullmatch(text, path.as_posix())
        if match and path.is_file():
            name = match["subject"]
            found.setdefault(subject_key(name), []).append((name, path))
    if not found:
        raise InputError(f"{pattern}: no file fits this pattern; check it, and quote it in a shell")
    return found


def without_files(found, *others):
    """Drop from `found` the files that a more specific pattern has found as well.

    `{subject}.nii.gz` takes the region `a_roi.nii.gz` for the scan of a subject `a_roi`.
    """
    taken = {path for files in others if files for pairs in files.values() for _, path in pairs}
    kept = {key: [pair for pair in pairs if pair[1] not in taken] for key, pairs in found.items()}
    return {key: pairs for key, pairs in kept.items() if pairs}


def prefix_hint(pattern, found, wanted):
    """Say how to write the pattern if file names have a prefix before the subject; else None.

    `{subject}_T2.nii` takes `AMS_0005_T2.nii` for the scan of a subject AMS_0005. Parameters:
    found, as from `find_files(pattern)`; wanted, the subject keys of the other files or tables.
    """
    folder, _, name = str(pattern).rpartition("/")
    for key in sorted(found.keys() - set(wanted)):
        subject = found[key][0][0]
        if "{subject}" in name and subject_key(subject.rpartition("_")[2]) in wanted:
            better = f"{folder}/{name}".lstrip("/" * (not folder))
            better = better.replace("{subject}", "*_{subject}")
            return f"hint: {pattern} finds {subject!r}; for names with a prefix write {better}"
    return None


@dataclasses.dataclass
class Entry:
    """What the spreadsheet says about a subject; `problem`: why it cannot be used."""

    name: str
    count: int | None = None
    slice_z_mm: float | None = None
    problem: str | None = None


def read_counts(path, subject_column, count_column, slice_column=None, session=None):
    """Read a spreadsheet's counts: {subject key: Entry}.

    Given a `session` and a column `session_id` (BIDS), only the rows of that session count. Raises
    InputError for a file that is not a table, lacks a column or has no row.
    """
    columns = [name for name in (subject_column, count_column, slice_column) if name]
    session = session and session_key(session)
    entries, lines = {}, {}
    for line, row in read_table(path, columns, optional=("session_id",)):
        if session and session_key(row["session_id"] or session) != session:  # blank: of all
            continue
        name = row[subject_column]
        if not name and not row[count_column]:
            continue
        key = subject_key(name) if name else f"line {line}"
        if key in entries:
            problem = f"several rows ({path}, lines {lines[key]} and {line})"
            entries[key] = Entry(name, problem=problem)
            continue
        lines[key] = line
        entries[key] = _entry(row, name, count_column, slice_column)
        if entries[key].problem:
            entries[key].problem += f" ({path}, line {line})"
    if not entries:
        raise InputError(f"{path}: no row with a subject; check the file, and --session if given")
    return entries


def session_key(name):
    """The name of a session without BIDS's `ses-`."""
    return name.strip().removeprefix("ses-")


def _entry(row, name, count_column, slice_column):
    if not name:
        return Entry("(no name)", problem=f"count {row[count_column][:40]!r} without a subject")
    try:
        entry = Entry(name, parse_count(row[count_column]))
    except ValueError as error:
        return Entry(name, problem=str(error))
    if entry.count is None:
        entry.problem = "no count"
    elif slice_column:
        entry.slice_z_mm = parse_number(row[slice_column])
        if math.isnan(entry.slice_z_mm):
            entry.problem = f"{slice_column} {row[slice_column][:40]!r} is not a number"
    return entry

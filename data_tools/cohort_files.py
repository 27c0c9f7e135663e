"""Which files belong to which subject, and what a spreadsheet says about them.

Shared by make_cohort.py and counts_from_masks.py. Two rules hold wherever subjects are matched:

* A pattern names a subject's file: `scans/{subject}_T2.nii.gz`. `{subject}` stands for the same
  text wherever it occurs, the shortest that fits; `*` and `?` for any text and any character, but
  not `/`.
* Two names mean one subject when they differ only in case, in BIDS's `sub-`, or in zeros in front
  of a number, which spreadsheets drop: `sub-007`, `007` and `7`.

A number in a spreadsheet may be written 3, 3.0 or 3,0 (a comma is a decimal comma). What could be
a thousands separator (1.000) is refused, not guessed.
"""

import codecs
import contextlib
import csv
import dataclasses
import glob
import io
import math
import re
from pathlib import Path

from weakunet.data.cohort import MAX_COUNT, MAX_TABLE
from weakunet.util.cli import InputError, one_line

DELIMITERS = "\t;,"
MAX_COLUMNS = 10_000  # Excel has 16,384, and no count stands there
BLANK = {"", "n/a", "na", "#n/a", "nan", "none", "null", ".", "-"}


def subject_key(name):
    """What two spellings of one subject have in common."""
    name = name.strip().casefold().removeprefix("sub-")
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
    """Drop from `found` the files that a more particular pattern has found, too.

    `{subject}.nii.gz` takes a's region `a_roi.nii.gz` for the scan of a subject `a_roi`.
    """
    taken = {path for files in others if files for pairs in files.values() for _, path in pairs}
    kept = {key: [pair for pair in pairs if pair[1] not in taken] for key, pairs in found.items()}
    return {key: pairs for key, pairs in kept.items() if pairs}


@dataclasses.dataclass
class Entry:
    """What the spreadsheet says about a subject; `problem` says why it cannot be used, if so."""

    name: str
    count: int | None = None
    slice_z_mm: float | None = None
    problem: str | None = None


def read_counts(path, subject_column, count_column, slice_column=None, session=None):
    """Read a spreadsheet's counts: {subject key: Entry}.

    With a `session`, where the table has a column `session_id` (BIDS), only that session's rows.
    Raises InputError for a file that is no table, lacks a column or has no row.
    """
    columns = [name for name in (subject_column, count_column, slice_column) if name]
    session = session and session_key(session)
    entries, lines = {}, {}
    for line, row in read_table(path, columns, optional=("session_id",)):
        if session and session_key(row.get("session_id", session)) != session:
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
    """A session's name as BIDS writes it, without `ses-`."""
    return name.strip().removeprefix("ses-")


def _entry(row, name, count_column, slice_column):
    text = row[count_column]
    match = re.fullmatch(r"([0-9]{1,7})(?:[.,](0*))?", text)
    if not name:
        return Entry("(no name)", problem=f"count {text[:40]!r} without a subject")
    if text.casefold() in BLANK:
        return Entry(name, problem="no count")
    if not match or match[2] == "000" or int(match[1]) > MAX_COUNT:
        return Entry(name, problem=f"count {text[:40]!r} is no whole number of at least 0")
    entry = Entry(name, int(match[1]))
    if slice_column:
        try:
            entry.slice_z_mm = float(row[slice_column].replace(",", "."))
        except ValueError:
            entry.slice_z_mm = math.nan
        if not math.isfinite(entry.slice_z_mm):
            entry.problem = f"{slice_column} {row[slice_column][:40]!r} is no number"
    return entry


def read_table(path, columns, optional=()):
    """Read a spreadsheet saved as text; yield (line number, {column: text, spaces stripped}).

    Tabs, semicolons or commas between the cells: the ones with which the first line names all of
    `columns`. UTF-8, UTF-16 with its mark (Excel's "Unicode text") or, where it is neither,
    Windows' western European. A column is found by its exact name, or else in any case. Raises
    InputError.
    """
    text = _decode(Path(path))
    headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(
        DELIMITERS,
        key=lambda d: sum(_column(path, headers[d], name) is not None for name in columns),
    )
    header = headers[delimiter]
    missing = [name for name in columns if _column(path, header, name) is None]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; "
            f"its columns are {one_line(', '.join(max(headers.values(), key=len)), 200)}"
        )
    place = {name: _column(path, header, name) for name in (*columns, *optional)}
    place = {name: i for name, i in place.items() if i is not None}
    rows = _rows(path, text, delimiter)
    next(rows)
    for line, row in rows:
        if any(row[len(header) :]):
            raise InputError(
                f"{path}: line {line} has {len(row)} cells, the header {len(header)}; "
                f"put text that holds {delimiter!r} in double quotes"
            )
        yield line, {name: row[i] if i < len(row) else "" for name, i in place.items()}


def _column(path, header, name):
    """Where the column is: exactly so called, or else in any case; None where there is none."""
    places = [i for i, cell in enumerate(header) if cell == name]
    places = places or [i for i, cell in enumerate(header) if cell.casefold() == name.casefold()]
    if len(places) > 1:
        raise InputError(f"{path}: {len(places)} columns are called {name!r}; rename one")
    return places[0] if places else None


def _decode(path):
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if content[:2] == b"PK" or len(content) > MAX_TABLE:  # .xlsx and .ods are zip files
        raise InputError(f"{path}: no text table; save the sheet as CSV and name that file")
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for encoding in ("utf-16",) if marked else ("utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding).removeprefix("\ufeff")
    raise InputError(f"{path}: unknown encoding; save it as 'CSV UTF-8'")


def _header(text, delimiter):
    """The first row, read leniently: quotes look wrong where the delimiter is."""
    with contextlib.suppress(csv.Error):
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if _is_row(row):
                return [cell.strip() for cell in row[:MAX_COLUMNS]]
    return []


def _is_row(row):
    """Not blank, and not Excel's line `sep=;`."""
    return any(cell.strip() for cell in row) and not re.fullmatch("sep=.?", "".join(row))


def _rows(path, text, delimiter):
    """Yield (line number, cells); a quote that is not closed would swallow the rows after it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if _is_row(row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: not readable as a table ({error}); save it again"
        ) from None

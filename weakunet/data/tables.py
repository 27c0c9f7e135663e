"""Tables of text: CSV as this package, a spreadsheet program or a BIDS dataset writes it.

Cells are separated by commas, semicolons or tabs: whichever separator makes the first line name the
columns asked for. The text is UTF-8, UTF-16 with a byte order mark (Excel's "Unicode text") or,
failing both, Windows' western European. Columns are found by their exact name, or else in any case.
A decimal comma is read as a point. An empty cell, `NA` and the like mean "unknown" everywhere.
"""

import codecs
import contextlib
import csv
import io
import math
import re
from pathlib import Path

from weakunet.util.cli import InputError, one_line

DELIMITERS = ",;\t"
MAX_TABLE = 2**23  # bytes; reading takes up to 40 times as much memory
MAX_COLUMNS = 10_000  # Excel has 16,384
MAX_COUNT = 10**6
BLANK = {"", "n/a", "na", "#n/a", "nan", "none", "null", ".", "-"}


def is_blank(text):
    """Whether a cell says that the value is unknown."""
    return text.casefold() in BLANK


def parse_number(text):
    """The number in a cell (3.5 or 3,5); NaN where there is none."""
    try:
        value = float(text.replace(",", ".").replace("_", "?"))  # Python takes 1_5 for 15
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def parse_count(text):
    """The count in a cell (3, 3.0 or 3,0); None where it is unknown.

    Raises ValueError for anything else, and for 1.000, which may be 1 or 1000.
    """
    if is_blank(text):
        return None
    match = re.fullmatch(r"([0-9]{1,7})(?:[.,](0*))?", text)
    if not match or match[2] == "000" or int(match[1]) > MAX_COUNT:
        raise ValueError(f"count {one_line(text, 40)!r} is not a whole number of at least 0")
    return int(match[1])


def read_table(path, columns, optional=()):
    """Yield (line number, {column: text}) per row; spaces are stripped, blank lines skipped.

    The text is "" where the table lacks an `optional` column, or a row its last cells. Raises
    InputError naming the table (and the line) when it cannot be read, lacks one of `columns`, or
    has a row with more cells than the header.
    """
    path = Path(path)
    text = _decode(path)
    names = (*columns, *optional)
    headers = {delimiter: _header(path, text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda d: sum(bool(_places(headers[d], n)) for n in names))
    header = headers[delimiter]
    missing = [name for name in columns if not _places(header, name)]
    if missing:
        found = one_line(", ".join(max(headers.values(), key=len)), 200) or "none"
        raise InputError(
            f"{path}: no column {', '.join(missing)} (its columns are {found}); "
            f"the first line must name {', '.join(columns)}"
        )
    places = {name: _places(header, name) for name in names}
    for name, several in places.items():
        if len(several) > 1:
            raise InputError(f"{path}: {len(several)} columns are called {name!r}; rename one")
    # strict, as an unclosed quote would swallow the next rows
    rows = _rows(path, text, delimiter, strict=True, skipinitialspace=True)
    next(rows)
    for line, row in rows:
        if any(row[len(header) :]):
            raise InputError(
                f"{path}: line {line} has {len(row)} cells, the header {len(header)}; "
                f"put text that holds {delimiter!r} in double quotes"
            )
        yield line, {n: row[p[0]] if p and p[0] < len(row) else "" for n, p in places.items()}


def _places(header, name):
    """Where the column is: the cells so called exactly, or else in any case."""
    exact = [i for i, cell in enumerate(header) if cell == name]
    return exact or [i for i, cell in enumerate(header) if cell.casefold() == name.casefold()]


def _decode(path):
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TABLE + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if content[:2] == b"PK":  # .xlsx and .ods are zip files
        raise InputError(f"{path}: not a text table; save the sheet as CSV and name that file")
    if len(content) > MAX_TABLE:
        raise InputError(f"{path}: over {MAX_TABLE // 2**20} MiB; check that it is the table")
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for encoding in ("utf-16",) if marked else ("utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding).removeprefix("\ufeff")
    raise InputError(f"{path}: unknown encoding; save it as 'CSV UTF-8'")


def _header(path, text, delimiter):
    """The first row, read leniently: the wrong delimiter makes quotes look wrong."""
    with contextlib.suppress(InputError, StopIteration):
        return next(_rows(path, text, delimiter))[1][:MAX_COLUMNS]
    return []


def _rows(path, text, delimiter, **how):
    """Yield (line number, cells) of the rows that are neither blank nor Excel's line `sep=;`."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **how)
    try:
        for row in reader:
            if any(cell.strip() for cell in row) and not re.fullmatch("sep=.?", "".join(row)):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: not readable as a table ({one_line(error)}); "
            "save it again"
        ) from None

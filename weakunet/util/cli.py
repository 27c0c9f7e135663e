"""What every command shares: errors in one line, files that are complete or absent, progress.

A user's mistake (a missing file, a bad count, no GPU) is raised as `InputError`: one line that
names the file and the remedy. `command` prints that line, or that of a full disk, and exits with
code 2. Files are written under a temporary name and then renamed: an interruption leaves the old
file or none.
"""

import argparse
import contextlib
import csv
import errno
import functools
import io
import json
import math
import os
import secrets
import sys
from pathlib import Path

from tqdm import tqdm

WRITING = ".writing-"  # file names begin with this until the file is complete
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
UNUSABLE += (errno.ENAMETOOLONG, errno.ELOOP)


class InputError(Exception):
    """Bad input: one line that names the file and says how to fix it."""


def one_line(what, longest=80):
    """Shorten a library's error, or text from a file, to one printable line."""
    text = " ".join(str(what).split())
    if isinstance(what, Exception) and not text:
        text = type(what).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def note(what):
    """Print a remark on stderr; the work goes on."""
    print(f"note: {what}", file=sys.stderr, flush=True)


def new_parser(about, prog=None):
    """A command's parser; `prog` is how the command is called."""
    return argparse.ArgumentParser(prog, description=about, formatter_class=Help)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """--help keeps the lines of the description and shows each option's default, if it has one."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.default == []
        return action.help if none else super()._get_help_string(action)


def positive(text):
    """Parse an option that must be a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def command(main):
    """Wrap a command's `main(argv=None)`: a user's mistake becomes one line and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv=None):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # letters that a terminal lacks become \u65e5
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except InputError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in FULL + UNUSABLE:
                raise
            remedy = "free space or " if error.errno in FULL else ""
            where = error.filename or "output"
            message = f"{where}: {error.strerror}; {remedy}choose another folder"
        except MemoryError as error:
            message = f"not enough memory ({one_line(error)}); use smaller or fewer scans at once"
        except KeyboardInterrupt:
            print("interrupted; run the same command again", file=sys.stderr)
            sys.exit(130)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)

    return wrapped


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on success it replaces `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path.with_name(f"{WRITING}{secrets.token_hex(8)}{''.join(path.suffixes)}"))
    open(name, "xb").close()
    try:
        yield Path(name)
        # the content is on the disk before it gets its name, where that can be asked for
        with open(name, "r+b") as file:  # Windows refuses to flush what is open for reading
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno in FULL:
                    raise
        os.replace(name, path)
    except OSError as error:
        if error.filename in (None, name):  # a full disk does not say whose write failed
            error.filename = str(path)
        raise
    finally:
        Path(name).unlink(missing_ok=True)


def path_from(folder, path):
    """`path` as seen from `folder`, with forward slashes; absolute across Windows drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def clear_leftovers(folder):
    """Remove the half-written files of a killed run; no other run may be writing in the folder."""
    for path in Path(folder).rglob(f"{WRITING}*"):
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` (UTF-8) to `path` atomically."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:  # the system gives such names as half of a surrogate pair
        raise InputError(
            f"{path}: cannot hold the name of a file that is not in UTF-8; rename that file"
        ) from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path, value):
    """Write `value` as indented JSON to `path` atomically; NaN is written as null."""

    def constant(name):
        return None if name == "NaN" else float(name)

    value = json.loads(json.dumps(value), parse_constant=constant)
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path, header, rows):
    """Write a CSV table (header: column names; rows: sequences) to `path` atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def progress(items, what, quiet=False, total=None):
    """Iterate over `items` with a progress bar; outside a terminal ten lines, none if `quiet`.

    total: how many there are, for an iterator.
    """
    total = len(items) if total is None else total
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, leave=False)
        return
    every = max(1, total // 10)
    for done, item in enumerate(items, start=1):
        yield item
        if not quiet and (done % every == 0 or done == total):
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

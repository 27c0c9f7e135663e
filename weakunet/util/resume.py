"""Take up a run that was stopped or killed: a scan whose files are whole is not done again.

OUT/.unfinished holds settings.json, what the run was begun with, and done/SUBJECT.json for every
scan that is done: its rows of the tables, and size and time of the files that it was made from. It
is removed when the tables are written, so a finished folder holds results only.
"""

import json
import os
import shutil

from weakunet.util.cli import InputError, clear_leftovers, write_json

FOLDER = ".unfinished"


def begin(out, settings):
    """Begin or take up a run in the folder `out`.

    Raises InputError when it is no folder, or holds scans that were done with other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out")
    path = out / FOLDER / "settings.json"
    earlier = _read(path)
    if earlier != settings:
        if any((path.parent / "done").glob("[!.]*.json")):
            raise InputError(
                f"{out}: holds part of a run with other settings, {earlier}; choose another --out, "
                f"or remove {path.parent} to begin again"
            )
        write_json(path, settings)
    clear_leftovers(out)


def is_begun(out):
    """True if a run in `out` was begun and not finished."""
    return (out / FOLDER / "settings.json").is_file()


def note(out, subject, sources, rows):
    """Note that all files of a scan are written: its rows, and what it was made from."""
    write_json(_note(out, subject), {"sources": _stamps(sources), "rows": rows})


def noted(out, subject, sources, results):
    """The rows of a scan that is done; None where a source has changed or a result is missing."""
    done = _read(_note(out, subject))
    if done and done["sources"] == _stamps(sources) and all(path.is_file() for path in results):
        return done["rows"]
    return None


def finish(out):
    """Forget the notes; the settings first, so that a kill here leaves a finished folder."""
    (out / FOLDER / "settings.json").unlink()
    shutil.rmtree(out / FOLDER)


def _note(out, subject):
    return out / FOLDER / "done" / f"{subject}.json"


def _stamps(paths):
    """Each file's path, size and time; of one that is missing, its path."""
    stamps = []
    for path in paths:
        stat = os.stat(path) if os.path.isfile(path) else None
        stamps.append([str(path), stat and stat.st_size, stat and stat.st_mtime_ns])
    return stamps


def _read(path):
    """A JSON object; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def claim_folder(out, settings):
    """Make the folder `out`, or check that it was begun with the same settings."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out")
    path = out / "settings.json"
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        if earlier != settings:
            raise InputError(
                f"{path}: begun with other settings, {earlier}; choose another --out or remove it"
            )
        clear_leftovers(out)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder holds other files; choose another --out")
    else:
        write_json(path, settings)

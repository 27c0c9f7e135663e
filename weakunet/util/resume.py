"""The one way to resume after a stop, and the one rule for keeping a result.

A command that works scan by scan notes each finished scan in OUT/.done/SUBJECT.json. Run again, it
keeps a result if its files exist, VERSION and the settings are as noted, and every input file has
the path, size and time that were noted, or else the same content. So a corrected table, a replaced
image or a new program is noticed, and a folder that was only moved or copied is not done again.
The order is `begin` for the folder, then for each result `noted`, and where that has none, `inputs`
before the files are read and `note` after the results are written (see parts.py).
"""

import hashlib
import json
import os

from weakunet.util.cli import WRITING, InputError, clear_leftovers, one_line, write_json

VERSION = 2  # of what the program writes; raise it where the same inputs give other results
FOLDER = ".done"
SETTINGS = "settings.json"


def begin(out, settings, mixed=False, shared=False):
    """Make the folder `out` for results with these settings (a dict), or resume in it.

    mixed: `out` may hold other files. shared: other processes may be writing in `out` now. Raises
    InputError where `out` is a file, was begun with other settings, or holds other files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out")
    path, settings = out / SETTINGS, _as_json(settings)
    names = {own.name for own in out.iterdir()} if out.exists() else set()
    foreign = not mixed and any(
        not name.startswith(WRITING)  # another part may be beginning the same folder
        for name in names - {SETTINGS, FOLDER}
    )
    made = foreign or any((out / FOLDER).glob("*.json"))  # nothing: a first try that failed
    if path.is_file() and made and _read(path) != settings:
        raise InputError(
            f"{path}: begun with other settings, {_differences(_read(path) or {}, settings)}; "
            f"choose another --out, or remove {out} to begin again"
        )
    if foreign and not path.is_file():
        raise InputError(f"{out}: the folder holds other files; choose another --out")
    if _read(path) != settings:
        write_json(path, settings)
    if not shared:
        clear_leftovers(out)


def inputs(settings, sources):
    """What a result is made from, for `note`: settings (a dict) and sources (paths, or None).

    Call it before the sources are read: a file that changes meanwhile then counts as changed.
    """
    stamps = []
    for path in sources:
        try:
            stamps.append(path and _stamp(path) | {"sha256": file_digest(path)})
        except OSError:  # whoever reads it will say so
            stamps.append({})
    return {"version": VERSION, "settings": _as_json(settings), "sources": stamps}


def note(out, name, made_from, value=True):
    """Note that all files of `name` (a subject) are written; `value` (JSON) goes with it."""
    write_json(_note(out, name), made_from | {"value": value})


def noted(out, name, settings, sources, results):
    """The value noted with the files `results` if they are still those of their inputs, or None.

    settings, sources: as for `inputs`, the sources in the same order.
    """
    before = _read(_note(out, name))
    try:
        same = before["version"] == VERSION and before["settings"] == _as_json(settings)
        stamps = zip(before["sources"], sources, strict=True)
        same = same and all(_unchanged(stamp, path) for stamp, path in stamps)
        return before["value"] if same and all(map(os.path.isfile, results)) else None
    except (KeyError, TypeError, ValueError, OSError):  # no note, a damaged one, or no such source
        return None


def _unchanged(before, path):
    """The rule for one file. `before` is its noted stamp; None: there was no such file."""
    if before is None or path is None:
        return before is path
    now = _stamp(path)
    if all(before[key] == value for key, value in now.items()):
        return True
    return before["size"] == now["size"] and before["sha256"] == file_digest(path)


def _stamp(path):
    stat = os.stat(path)
    return {"path": os.path.abspath(path), "size": stat.st_size, "time_ns": stat.st_mtime_ns}


def file_digest(path):
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def array_digest(array, more=None):
    """SHA-256 of an array's shape and values, and of what else tells it from others."""
    return hashlib.sha256(repr((array.shape, more)).encode() + array.tobytes()).hexdigest()


def _note(out, name):
    return out / FOLDER / f"{name}.json"


def _as_json(value):
    return json.loads(json.dumps(value))


def _differences(earlier, settings):
    names = [name for name in earlier | settings if earlier.get(name) != settings.get(name)]
    told = (f"{name} {earlier.get(name)!r} (now {settings.get(name)!r})" for name in names)
    return one_line(", ".join(told), 300)


def _read(path):
    """A JSON object; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

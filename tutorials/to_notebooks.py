"""Write the tutorials as Jupyter notebooks, for those who want them.

    python tutorials/to_notebooks.py [SCRIPT.py ...] [--out DIR]

A tutorial is a Python script in percent cells: a line `# %%` starts a code cell, `# %% [markdown]`
one of text, in comments. The scripts are what is tested and edited; notebooks are made from them,
without outputs, in tutorials/notebooks (which git ignores).
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent
sys.path.insert(0, str(TUTORIALS.parent))  # from a clone, uninstalled

from weakunet.util.cli import InputError, command, write_text  # noqa: E402

MARK = re.compile(r"# ?%%\s*(\[markdown\])?\s*(.*)")
SETUP = """\
# made by tutorials/to_notebooks.py: a notebook does not know its script's path
__file__ = {script!r}
%matplotlib inline"""


def cells(text, path):
    """The cells of a script as (kind, text), kind 'markdown' or 'code'; empty ones are left out.

    A title behind the mark of a code cell becomes a comment. Raises InputError, with the line,
    where a text cell holds code.
    """
    found, kind, lines = [], "code", []
    for number, line in enumerate([*text.splitlines(), "# %%"], start=1):
        mark = MARK.fullmatch(line)
        if mark:
            if any(part.strip() for part in lines):
                found.append((kind, "\n".join(lines).strip("\n")))
            kind, title = "markdown" if mark[1] else "code", mark[2]
            lines = [f"# {title}" if kind == "code" else title] if title else []
        elif kind == "markdown" and line.strip():
            if not line.startswith("#"):
                raise InputError(
                    f"{path}: line {number}: code in a text cell; put `# %%` before it"
                )
            lines.append(line[1:].removeprefix(" "))
        else:
            lines.append(line)
    return found


def notebook(script, folder):
    """The notebook of a script, to be written into `folder`, as JSON text (nbformat 4.5)."""
    relative = Path(os.path.relpath(script, folder)).as_posix()
    text = script.read_text(encoding="utf-8")
    content = []
    for kind, source in [("code", SETUP.format(script=relative)), *cells(text, script)]:
        cell = {"cell_type": kind, "id": f"cell-{len(content)}", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        content.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": content,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


@command
def main(argv=None):
    """Convert the scripts given, or all tutorials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path, help="default: all tutorials")
    parser.add_argument("--out", type=Path, default=TUTORIALS / "notebooks")
    args = parser.parse_args(argv)
    for script in args.scripts or sorted(TUTORIALS.glob("[0-9][0-9]_*.py")):
        if not script.is_file():
            raise InputError(f"{script}: no such file; give the tutorials' scripts")
        path = args.out / f"{script.stem}.ipynb"
        write_text(path, notebook(script, args.out))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()

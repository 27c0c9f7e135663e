"""Print how many lines each part of the project has; exit with 1 when one is over its budget.

The budgets of the package's folders are in weakunet/__init__.py, those of everything are here.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_ALL = {"weakunet": 12_630, "tests": 12_705, "tutorials": 7701}
SUFFIXES = (".py", ".cu", ".cuh", ".h", ".cpp", ".html", ".md")


def package_map():
    """[(place, budget, what it is)] of weakunet/__init__.py, in reading order."""
    text = (ROOT / "weakunet" / "__init__.py").read_text(encoding="utf-8")
    rows = re.findall(r"^    (\S+) +(\d+)  (.+)$", text, re.M)
    return [(place, int(budget), what) for place, budget, what in rows]


def files_of(place):
    """The files that a line of the map is about: a folder's own, one file, or the rest of them."""
    package, named = ROOT / "weakunet", {other for other, *_ in package_map()}
    if place.endswith("/"):
        return [path for path in (package / place).iterdir() if path.suffix in SUFFIXES]
    if place != "*.py":
        return [package / place]
    return [path for path in package.glob(place) if path.name not in named]


def count(paths):
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def main():
    rows = [(f"weakunet/{place}", count(files_of(place)), most) for place, most, _ in package_map()]
    for folder, most in IN_ALL.items():
        paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
        rows.append((folder, count(paths), most))
    for name, lines, most in rows:
        print(f"{name:24}{lines:7} of {most:6}{'  TOO MANY' if lines > most else ''}")
    sys.exit(any(lines > most for _, lines, most in rows))


if __name__ == "__main__":
    main()

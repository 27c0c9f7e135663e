"""Write the folder that students get: package, lessons, exercises and their graders, no solutions.

    python tutorials/exercises/handout.py OUT

OUT is a clone without its history (which knows the solutions), its tests (which know the mistakes)
and whatever marks a class. Commands and paths of the course's pages work in it as they are.
"""

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIVEN = [
    "README.md", "LICENSE", "pyproject.toml", "requirements.txt", "weakunet", "data_tools",
    "tutorials", "tests/cuda_on_cpu",
]  # fmt: skip
KEPT_BACK = "solutions lecturers.md handout.py grade.py planted __pycache__ .* *.ipynb".split()


def main(argv=None):
    """Copy what students get."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    out = parser.parse_args(argv).out
    if out.exists():
        parser.error(f"{out}: is there already; name a new folder")
    for name in GIVEN:
        source, target = ROOT / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*KEPT_BACK))
        else:
            shutil.copy(source, target)
    print(f"wrote {out}: hand it out as it is; solutions and grade.py stay with you")


if __name__ == "__main__":
    main()

"""The course's pages name files, functions and commands that exist, and pictures that are small."""

import ast
import re

import pytest
from helpers import ROOT
from test_readme import BENCH, COMPARISON, ELSEWHERE

TUTORIALS = ROOT / "tutorials"
ROAD = TUTORIALS / "paper_to_code.md"
NAMES = ("README.md", "lecturers.md", "paper_to_code.md", "exercises/README.md")
PAGES = [TUTORIALS / name for name in NAMES]
# A page's commands: those that test_readme.py runs or says which test does, and set-up.
RULES = [*ELSEWHERE, COMPARISON, BENCH, r"python -m weakunet\.train\b.*"]
RULES += [r"python data_tools/make_digits\.py.*", r"(python -m )?pip install .*"]


def names_in(path):
    """Functions, classes, methods and constants of a module: 'f', 'C', 'C.m', 'X'."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            body = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{m.name}" for m in body if isinstance(m, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_every_sentence_leads_to_code_that_exists():
    rows = [line for line in ROAD.read_text(encoding="utf-8").splitlines() if "](../" in line]
    assert len(rows) >= 70
    for row in rows:
        for link, rest in re.findall(r"\]\((\.\./[^)]+\.py)\)((?: `[\w.]+`,?)+)", row):
            names = re.findall(r"`([\w.]+)`", rest)
            missing = set(names) - names_in((TUTORIALS / link).resolve())
            assert names and not missing, (link, missing)
        assert len(re.findall(r"\]\(\.\./[^)]+\.py\) `", row)) == row.count("](../"), row


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", TUTORIALS / "results.md"], ids=str)
def test_pages_name_only_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert links and all((page.parent / link).exists() for link in links), links
    for name in re.findall(r"`((?:weakunet|tutorials|tests|data_tools)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_commands_that_are_tested(page):
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"(?:^|`)((?:python|pip) [^`\n]+)", text, re.M)
    for command in commands:
        assert any(re.fullmatch(rule, command) for rule in RULES), command


def test_each_lesson_has_a_small_picture_on_the_students_page():
    page = PAGES[0].read_text(encoding="utf-8")
    pictures = sorted((TUTORIALS / "images" / "lessons").iterdir())
    lessons = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
    assert [path.stem for path in pictures] == [path.stem for path in lessons]
    assert sum(path.stat().st_size for path in pictures) < 2e6
    for path in pictures:
        assert f"images/lessons/{path.name}" in page, path.name

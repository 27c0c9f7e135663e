"""Is a result still that of its inputs? One rule, whoever asks."""

import os
import shutil

import pytest

from weakunet.util import resume
from weakunet.util.cli import WRITING, InputError


@pytest.fixture
def made(tmp_path):
    """A result of two files, one left out, and how its command asks for it."""
    sources = [tmp_path / "in" / "image.nii", None, tmp_path / "in" / "centres.csv"]
    results = [tmp_path / "out" / "s1.nii"]
    for path in (sources[0], sources[2], results[0]):
        path.parent.mkdir(exist_ok=True)
        path.write_text("first")
    asked = {"settings": {"slab_mm": (1, 2)}, "sources": sources, "results": results}
    made_from = resume.inputs(asked["settings"], sources)
    resume.note(tmp_path / "out", "s1", made_from, [1.5, float("inf")])
    return asked


def kept(tmp_path, made):
    return resume.noted(tmp_path / "out", "s1", **made) is not None


def move_inputs(tmp_path, made):
    shutil.move(tmp_path / "in", tmp_path / "moved")
    made["sources"] = [path and tmp_path / "moved" / path.name for path in made["sources"]]


def rewrite(tmp_path, made):
    before = os.stat(made["sources"][0]).st_mtime
    made["sources"][0].write_text("other")  # of the same size
    os.utime(made["sources"][0], (before + 2, before + 2))


def older_file(tmp_path, made):  # as when the row named the wrong image
    made["sources"][0] = tmp_path / "in" / "right.nii"
    made["sources"][0].write_text("right")
    os.utime(made["sources"][0], (1, 1))


def write_note(text):
    return lambda tmp_path, made: (tmp_path / "out" / ".done" / "s1.json").write_text(text)


KEEPS = {
    "another time": lambda tmp_path, made: os.utime(made["sources"][0], (1, 1)),
    "another folder": move_inputs,
}
CHANGES = {
    "another content": rewrite,
    "an older file": older_file,
    "a longer file": lambda tmp_path, made: made["sources"][2].write_text("first and second"),
    "a source removed": lambda tmp_path, made: made["sources"][0].unlink(),
    "a source more": lambda tmp_path, made: made["sources"].__setitem__(1, made["sources"][0]),
    "a source fewer": lambda tmp_path, made: made["sources"].__setitem__(2, None),
    "the result removed": lambda tmp_path, made: made["results"][0].unlink(),
    "other settings": lambda tmp_path, made: made.update(settings={"slab_mm": (1, 3)}),
    "half a note": write_note('{"version": 1'),
    "an odd note": write_note('{"version": 1, "settings": {}}'),
}


def test_result_is_noted_with_its_value(tmp_path, made):
    assert resume.noted(tmp_path / "out", "s1", **made) == [1.5, float("inf")]
    assert resume.noted(tmp_path / "out", "s2", **made) is None


@pytest.mark.parametrize("change", KEEPS)
def test_result_is_kept_while_the_content_is_the_same(change, tmp_path, made):
    KEEPS[change](tmp_path, made)
    assert kept(tmp_path, made)


@pytest.mark.parametrize("change", CHANGES)
def test_result_is_made_again_after(change, tmp_path, made):
    CHANGES[change](tmp_path, made)
    assert not kept(tmp_path, made)


def test_result_of_another_version_is_made_again(tmp_path, made, monkeypatch):
    monkeypatch.setattr(resume, "VERSION", resume.VERSION + 1)
    assert not kept(tmp_path, made)


def test_source_that_changed_while_it_was_read_counts_as_changed(tmp_path, made):
    before = resume.inputs(made["settings"], made["sources"])
    rewrite(tmp_path, made)
    resume.note(tmp_path / "out", "s1", before)
    assert not kept(tmp_path, made)


def test_missing_source_is_left_to_its_reader(tmp_path, made):
    made["sources"][0].unlink()
    resume.note(tmp_path / "out", "s1", resume.inputs(made["settings"], made["sources"]))
    assert not kept(tmp_path, made)


def test_folder_resumes_with_its_settings_only(tmp_path):
    resume.begin(tmp_path / "out", {"spacing_mm": (1, 2), "invert": False})
    half = tmp_path / "out" / f"{WRITING}abc.nii"
    half.write_text("")
    resume.begin(tmp_path / "out", {"spacing_mm": [1, 2], "invert": False}, shared=True)
    assert half.exists()
    resume.begin(tmp_path / "out", {"spacing_mm": [1, 2], "invert": False})
    assert not half.exists()
    resume.begin(tmp_path / "out", {"spacing_mm": [3, 2], "invert": False})  # nothing was made
    resume.begin(tmp_path / "out", {"spacing_mm": [1, 2], "invert": False})
    resume.note(tmp_path / "out", "a", resume.inputs({}, ()))
    with pytest.raises(InputError, match=r"settings.json: begun with .*invert False \(now True\)"):
        resume.begin(tmp_path / "out", {"spacing_mm": [1, 2], "invert": True})
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json: begun with other settings"):
        resume.begin(tmp_path / "out", {"spacing_mm": [1, 2], "invert": False})


def test_folder_of_others_is_refused_unless_it_may_be_mixed(tmp_path):
    (tmp_path / "scan.nii").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        resume.begin(tmp_path / "scan.nii", {})
    with pytest.raises(InputError, match="holds other files"):
        resume.begin(tmp_path, {})
    resume.begin(tmp_path, {}, mixed=True)
    assert (tmp_path / "settings.json").is_file()

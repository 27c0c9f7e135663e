"""What every command shares: errors in one line, and disks and terminals that refuse things."""

import errno
import io
import os
import re
import sys
from pathlib import Path

import pytest

from weakunet import __main__, predict, train
from weakunet.util import cli


@cli.command
def write(arguments):
    """A command that writes a file and says so."""
    path, text = arguments
    cli.write_text(path, text)
    print(f"written: {path}")


def ends_in_one_line(capsys, path):
    with pytest.raises(SystemExit) as stop:
        write((path, "x" * 10**5))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ")
    return line


def refuse(number):
    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    "call, number",
    [("chmod", "EPERM"), ("chmod", "EOPNOTSUPP")]
    + [("fsync", "EINVAL"), ("fsync", "ENOSYS"), ("fsync", "EOPNOTSUPP")],
)
def test_disk_without_permissions_or_flushing_is_written_to(tmp_path, monkeypatch, call, number):
    """As a network drive, a bucket or what FUSE mounts."""
    monkeypatch.setattr(cli.os, call, refuse(getattr(errno, number)))
    write((tmp_path / "a.txt", "text"))
    assert (tmp_path / "a.txt").read_text() == "text"


def test_file_is_flushed_while_open_for_writing_as_windows_wants(tmp_path, monkeypatch):
    flushed = []

    def fsync(number):
        os.write(number, b"")  # refused where the file is open for reading only
        flushed.append(number)

    monkeypatch.setattr(cli.os, "fsync", fsync)
    write((tmp_path / "a.txt", "text"))
    assert len(flushed) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_disk_that_is_full_ends_in_one_line(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(cli.os, "fsync", refuse(number))
    line = ends_in_one_line(capsys, tmp_path / "a.txt")
    assert f"a.txt: {os.strerror(number)}; free space" in line
    assert list(tmp_path.iterdir()) == []


def test_path_that_cannot_be_written_ends_in_one_line(tmp_path, capsys):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("kept")
    folder.mkdir()
    long = tmp_path / ("n" * 300)
    for path, named in ((file / "a", file), (file / "b/a", file), (folder, folder), (long, long)):
        line = ends_in_one_line(capsys, path)
        assert f"{named}" in line and line.endswith("choose another folder")
    assert file.read_text() == "kept" and list(folder.iterdir()) == []
    assert not list(tmp_path.glob(".writing-*"))


def test_lack_of_memory_ends_in_one_line(tmp_path, monkeypatch, capsys):
    def allocate(path, text):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr(cli, "write_text", allocate)
    assert "not enough memory (Unable to" in ends_in_one_line(capsys, tmp_path / "a.txt")


def test_what_the_terminal_cannot_print_is_escaped(tmp_path, monkeypatch):
    """The code page of a Western Windows, and a Latin-1 file name on a UTF-8 system."""
    for encoding, name, shown in (
        ("cp1252", "日本", r"\u65e5\u672c"),
        ("utf-8", "M\udcfc", r"M\udcfc"),
    ):
        screen = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", screen)
        write((tmp_path / f"{name}.txt", "text"))
        screen.flush()
        assert screen.buffer.getvalue().decode(encoding).endswith(f"{shown}.txt\n")
        monkeypatch.undo()


def test_text_that_is_not_unicode_is_refused_and_nothing_is_left(tmp_path, capsys):
    with pytest.raises(SystemExit):
        write((tmp_path / "a.csv", "subject\nM\udcfcller\n"))
    assert "a.csv: cannot hold the name of a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_list_of_commands_is_complete():
    package = Path(__main__.__file__).parent
    single = [path.stem for path in package.glob("*.py") if "@command" in path.read_text("utf-8")]
    folders = [path.parent.name for path in package.glob("*/__main__.py")]
    assert set(__main__.COMMANDS) == {*single, *folders}


@pytest.mark.parametrize("module", [train, predict])
def test_help_says_what_every_option_means(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    options = re.split(r"\n  (?=-)", capsys.readouterr().out.split("\noptions:")[1])[2:]
    assert len(options) > 12
    for option in options:
        name, _, about = " ".join(option.split()).partition(" ")
        assert len(about.split()) >= 4, name
    defaults = [option.split()[0] for option in options if "(default: " in " ".join(option.split())]
    of_train = "--out --lr --channels --flips --shift-vox --rotate-deg --patience"
    assert set(defaults) >= set((of_train if module is train else "--device --jobs").split())


def test_interrupt_says_what_to_do(capsys):
    @cli.command
    def interrupted(arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        interrupted([])
    assert stop.value.code == 130 and "run the same command again" in capsys.readouterr().err

"""The ladder's page counts what the kernels' constants say."""

import re
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"


@pytest.fixture
def gpu_ladder(monkeypatch):
    monkeypatch.syspath_prepend(TUTORIALS)
    import gpu_ladder

    yield gpu_ladder
    sys.modules.pop("gpu_ladder")


def test_ladder_counts_what_the_kernels_constants_say(gpu_ladder):
    committed = gpu_ladder.PAGE.read_text(encoding="utf-8")
    assert committed == gpu_ladder.page(committed), "run: python tutorials/gpu_ladder.py"
    # by hand: (16+2)(8+2)(4+2) elements for 16x8x4 voxels, 27 taps and 32 channels, 4 bytes each
    assert "| tiled | 64 | 0.0098 | 0.71 |" in committed
    for path in re.findall(r"\]\(([^)]+)\)|`((?:layers|weakunet)/[\w./]+)`", committed):
        name = next(filter(None, path))
        assert (
            (TUTORIALS / name).exists()
            or (TUTORIALS.parent / "weakunet" / name).exists()
            or (TUTORIALS.parent / name).exists()
        ), name


def test_ladder_draws_a_picture_for_every_one_on_the_page(gpu_ladder, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_ladder, "IMAGES", tmp_path)
    monkeypatch.setattr(gpu_ladder, "PAGE", tmp_path / "page.md")
    text = (TUTORIALS / "gpu_ladder.md").read_text(encoding="utf-8")
    gpu_ladder.PAGE.write_text(text, encoding="utf-8")
    gpu_ladder.main([])
    named = set(re.findall(r"\(images/(\w+\.png)\)", text))
    assert named and {path.name for path in tmp_path.glob("*.png")} == named

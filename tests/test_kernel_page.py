"""The pages about the kernels say what the sources say."""

import html
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from weakunet.gpu import cuda_source

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"


@pytest.fixture
def gpu_ladder(monkeypatch):
    monkeypatch.syspath_prepend(TUTORIALS)
    import gpu_ladder

    yield gpu_ladder
    sys.modules.pop("gpu_ladder")


@pytest.fixture
def kernel_page(monkeypatch):
    monkeypatch.syspath_prepend(TUTORIALS)
    import kernel_page

    yield kernel_page
    sys.modules.pop("kernel_page")


def shown(page):
    """The page's text as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_committed_page_is_what_the_sources_generate(kernel_page):
    committed = kernel_page.PAGE.read_text(encoding="utf-8")
    assert committed == kernel_page.page(), "run: python tutorials/kernel_page.py"


def test_page_shows_every_kernel_and_every_function_with_a_cuda_pair(kernel_page):
    text = shown(kernel_page.page())
    for file in cuda_source.cu_files():
        for kernel in cuda_source.kernels(file):
            body = cuda_source.source(file).partition(f"{kernel}(")[2].partition("\n}\n")[0]
            assert body and f"{kernel}({body}\n}}" in text, f"{kernel} of {file}.cu"
        module = kernel_page.PACKAGE / f"{file}.py"
        if module.exists():
            functions = re.findall(r"^def (\w+)_cuda\(", module.read_text(), re.M)
            for function in functions:
                assert f"def {function}(" in text, f"{function} of {file}.py"
    assert "backend.launch" not in text
    assert text.count("backend.is_cuda") == 4  # upconv3d calls other layers


def test_page_follows_a_change_in_the_sources(kernel_page, tmp_path, monkeypatch):
    before = kernel_page.page()
    shutil.copytree(kernel_page.PACKAGE, tmp_path / "weakunet")
    monkeypatch.setattr(kernel_page, "PACKAGE", tmp_path / "weakunet")
    assert kernel_page.page() == before
    for name, old, new in (
        ("layers/relu.py", "np.maximum(x, 0)", "np.maximum(x, 17)"),
        ("layers/relu.cu", "(real)0 : x[i]", "(real)23 : x[i]"),
        ("layers/loss.py", "L = 1/N sum_n", "L = 1/M sum_n"),
    ):
        path = tmp_path / "weakunet" / name
        path.write_text(path.read_text().replace(old, new))
        assert old not in shown(kernel_page.page()) and new in shown(kernel_page.page()), name


def test_colours_change_no_character(kernel_page):
    for path in [*kernel_page.PACKAGE.rglob("*.py"), *kernel_page.PACKAGE.rglob("*.cu")]:
        text = path.read_text(encoding="utf-8")
        pattern = kernel_page.CUDA if path.suffix == ".cu" else kernel_page.PYTHON
        assert shown(kernel_page.highlight(text, pattern)) == text, path


def test_page_is_one_well_formed_file_that_needs_no_network(kernel_page):
    page = kernel_page.page()
    open_tags, anchors, links = [], set(), set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            attrs = dict(attrs)
            assert "src" not in attrs
            anchors.add(attrs.get("id"))
            links.add(attrs.get("href", "#relu"))
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    parser = Parser()
    parser.feed(page)
    parser.close()
    assert open_tags == [] and "url(" not in page and "@import" not in page
    assert {f"#{anchor}" for anchor in anchors} >= links


def test_command_writes_the_page(kernel_page, tmp_path, capsys):
    kernel_page.main(["--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == kernel_page.page()
    assert "page.html" in capsys.readouterr().out


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

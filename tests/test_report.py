"""The report: complete in itself, escaped, and alive in a real browser."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from weakunet.figures import report
from weakunet.figures.drawing import new_figure, save_figure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def scan():
    """A viewer's scan (6, 5, 8): a lesion found at z = 1, one missed at z = 4, a false alarm."""
    labels = np.zeros((6, 5, 8), np.int32)
    labels[1, 1:3, 1:3] = 1
    labels[4, 0, 7] = 2
    image = np.random.default_rng(0).uniform(0.2, 0.6, labels.shape)
    centres = np.array([(1.0, 1.5, 1.5), (4.0, 4.0, 2.0)])
    heatmap = (labels > 0) * 7.0
    return dict(image=image, heatmap=heatmap, labels=labels, centres_zyx=centres) | {
        "spacing_mm": (2.0, 1.0, 0.5)
    }


def write(folder, **changed):
    """Write a report of one table, one picture and a scan; returns its path and its text."""
    figure = new_figure(1, 1)
    save_figure(figure, folder / "picture.png")
    parts = dict(title="A report", intro="What it says.", viewer=scan())
    parts |= {"tables": [("Table 1", ("method", "TPR"), [("(a)", "0.5")])]}
    parts |= {"pictures": [(folder / "picture.png", "Fig. 1")]}
    path = folder / "report.html"
    report.write_report(path, **parts | changed)
    return path, path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, the text of each, and whether all that opens closes."""

    void = {"meta", "input", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else None, text.strip()))

    def text_of(self, tag):
        return [text for own, text in self.texts if own == tag and text]


def data_of(text):
    return json.loads(re.search(r"const scan = (\{.*\});", text)[1])


def unpacked(packed, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(shape)


def test_report_is_well_formed_holds_its_picture_and_asks_nothing_of_the_network(tmp_path):
    _, text = write(tmp_path)
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in text
    assert "@import" not in text and "fetch(" not in text
    policy = dict(page.tags)["meta"]
    assert any("default-src 'none'" in a.get("content", "") for _, a in page.tags), policy
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    (image,) = [a for tag, a in page.tags if tag == "img"]
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert content == (tmp_path / "picture.png").read_bytes()
    assert (image["width"], image["height"]) == ("120", "120")  # 1 inch at 120 dots


def test_text_is_escaped_and_braces_are_left_alone(tmp_path):
    nasty = "</script><b>&\"' {{data}} {{title}}"
    parts = {"title": nasty, "intro": nasty, "pictures": [(tmp_path / "picture.png", nasty)]}
    page = Page(write(tmp_path, **parts, tables=[(nasty, (nasty, "x"), [(nasty, nasty)])])[1])
    assert ("b", {}) not in page.tags
    for tag, times in {"title": 1, "h1": 1, "p": 1, "h3": 1, "td": 1, "figcaption": 1}.items():
        assert page.text_of(tag).count(nasty) == times, tag
    assert page.text_of("th").count(nasty) == 2
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [nasty]


def test_viewer_holds_the_scan_within_a_grey_level_and_every_mark(tmp_path):
    _, text = write(tmp_path)
    held, own = data_of(text), scan()
    shape = own["image"].shape
    assert held["shape"] == list(shape) and held["spacing"] == [2.0, 1.0, 0.5]
    np.testing.assert_allclose(
        unpacked(held["image"], shape) / 255, own["image"], atol=1 / 254 + 1 / 510
    )
    np.testing.assert_array_equal(unpacked(held["labels"], shape), own["labels"])
    np.testing.assert_array_equal(unpacked(held["heatmap"], shape), 255 * (own["labels"] > 0))
    points = {name: mark["points"] for name, mark in held["marks"].items()}
    assert points["true positives"] == [[1, 1.5, 1.5]]
    assert points["false positives"] == [[4, 0, 7]]
    assert points["false negatives"] == [[4, 4, 2]] and points["merged"] == []
    assert len({mark["shape"] for mark in held["marks"].values()}) == 4
    assert len(held["colours"]) == 256 and max(map(max, held["colours"])) <= 255


def test_labels_beyond_a_byte_are_still_labels(tmp_path):
    many = np.arange(6 * 5 * 9).reshape(6, 5, 9)
    known = {"centres_zyx": np.zeros((0, 3)), "spacing_mm": (1, 1, 1)}
    _, text = write(tmp_path, viewer=dict.fromkeys(("image", "heatmap", "labels"), many) | known)
    stored = unpacked(data_of(text)["labels"], many.shape)
    np.testing.assert_array_equal(stored > 0, many > 0)


def test_report_of_the_papers_size_stays_small(tmp_path):
    shape = (84, 128, 168)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    bright = np.clip(4 * (1 - z**4 - y**4 - x**4), 0, 1)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    image = bright * (0.5 + 0.03 * noise)
    heatmap = bright * np.maximum(0, np.sin(9 * x) * np.sin(7 * y) * np.cos(8 * z))
    volumes = {"image": image, "heatmap": heatmap, "labels": (heatmap > 0.99).astype(int)}
    path, _ = write(tmp_path, viewer=scan() | volumes)
    assert path.stat().st_size < 3e6


def patience(seconds=60):
    """Count 20 times a second; fail when the time is up."""
    for k in range(20 * seconds):
        yield k
        time.sleep(0.05)
    pytest.fail(f"the browser was not ready after {seconds} s")


class Browser:
    """Headless Chromium with one page, spoken to through pipes (Chrome DevTools protocol)."""

    def __init__(self, page, profile):
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
        command = f'exec "$0" {flags} --remote-debugging-pipe "$@" 3<&{to_read} 4>&{to_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, f"--user-data-dir={profile}", page.as_uri()],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read), os.close(to_write)
        self.session, self.sent, self.buffer, self.errors = None, 0, b"", []
        target = self.page_of(page.as_uri())
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.send("Runtime.enable")

    def page_of(self, address):
        for _ in patience():
            for target in self.send("Target.getTargets")["targetInfos"]:
                if target["url"] == address:
                    return target["targetId"]

    def send(self, method, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                self.buffer += os.read(self.from_browser, 1 << 20) or self.gone()
            text, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.errors.append(answer["params"])
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]

    def gone(self):
        pytest.fail(f"the browser ended with {self.process.wait()}")

    def value(self, expression):
        """Evaluate JavaScript; a promise is waited for."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.send("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys):
        """Press keys as a person does."""
        codes = {"ArrowUp": 38, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9}
        for key in keys:
            named = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
            text = {"text": key} if len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", **named, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def focus(self, selector):
        self.value(f"document.querySelector('{selector}').focus()")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to_browser), os.close(self.from_browser)


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium to open the page with (Debian: apt-get install chromium)")
    page, _ = write(tmp_path)
    browser = Browser(page, tmp_path / "profile")
    try:
        for _ in patience():
            if browser.value(SAYS):
                break  # the scan is unpacked
        yield browser
    finally:
        browser.close()


CANVAS = "document.querySelector('canvas')"
PIXELS = f"{CANVAS}.toDataURL()"
PIXEL = f"[...{CANVAS}.getContext('2d').getImageData({{}}, {{}}, 1, 1).data]"
SAYS = "document.querySelector('output')?.textContent"
SHOWN = "Number(document.getElementById('slice').value)"


def test_slices_turn_by_slider_and_by_keys_in_a_browser(browser):
    assert browser.errors == []
    assert browser.value(SAYS).startswith("slice z = 4 (0 to 5)")  # the busiest
    first = browser.value(PIXELS)
    assert "true positives 0, false positives 1, false negatives 1" in browser.value(SAYS)
    browser.focus("#slice")
    browser.press("ArrowRight")
    assert "true positives 0, false positives 0, false negatives 0" in browser.value(SAYS)
    assert browser.value(SAYS).startswith("slice z = 5 ") and browser.value(PIXELS) != first
    browser.focus("canvas")
    for key, z in (("Home", 0), ("ArrowUp", 1), ("End", 5), ("ArrowRight", 5)):
        browser.press(key)
        assert browser.value(SHOWN) == z
    browser.press("Tab")
    assert browser.value("document.activeElement.id") == "slice"


def test_heatmap_fades_in_and_marks_go_at_a_key(browser):
    browser.focus("canvas")
    browser.press("t", "d")
    bare, own = browser.value(PIXELS), scan()["image"][4, 4, 0]
    colours = data_of(browser.value("document.documentElement.outerHTML"))["colours"]
    np.testing.assert_allclose(browser.value(PIXEL.format(4, 4))[:3], 255 * own, atol=1.5)
    browser.press("h")
    found = browser.value(PIXEL.format(4, 4))[:3]
    np.testing.assert_allclose(found, colours[0], atol=1.5)  # no heat in that voxel
    assert browser.value(PIXELS) != bare and "heatmap 100 %" in browser.value(SAYS)
    hot = PIXEL.format(f"{CANVAS}.width - 4", f"{CANVAS}.height - 4")
    assert browser.value(hot)[:3] == colours[255]
    browser.press("h")
    assert browser.value(PIXELS) == bare

"""The report's page in a real browser: nothing sticks out, no label lies on another, in any light.

Set KD_JAX_SCREENSHOTS to a directory to keep the screenshots.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_jax.report import page as report_page
from kd_jax.report import results
from synthetic import write_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to look with")
WIDTHS_PX = {"desktop": 1280, "phone": 390, "small phone": 360}

# In the copy of the page that is measured: what sticks out, and which labels of a figure overlap.
MEASURE = """
<script>
addEventListener("load", () => {
  const overlaps = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent.trim(),
                                                              t.getBoundingClientRect()]);
    boxes.forEach(([text, box], i) => {
      if (box.right > frame.right + 1 || box.left < frame.left - 1)
        overlaps.push([svg.ariaLabel, text, "sticks out"]);
      for (const [other, otherBox] of boxes.slice(0, i)) {
        const wide = Math.min(box.right, otherBox.right) - Math.max(box.left, otherBox.left);
        const high = Math.min(box.bottom, otherBox.bottom) - Math.max(box.top, otherBox.top);
        if (wide > 1 && high > 0.3 * box.height) overlaps.push([svg.ariaLabel, text, other]);
      }
    });
  }
  const root = document.scrollingElement;
  parent.postMessage({
    scroll: root.scrollWidth, inner: innerWidth, height: root.scrollHeight, overlaps,
    figures: document.querySelectorAll("svg").length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    ink: getComputedStyle(document.body).color,
    figureInk: getComputedStyle(document.querySelector("svg text")).fill,
    smallest: Math.min(...[...document.querySelectorAll("svg text")]
      .filter(t => t.textContent.trim())
      .map(t => [parseFloat(getComputedStyle(t).fontSize), t.getScreenCTM()])
      .map(([size, to]) => size * Math.hypot(to.a, to.b))),
  }, "*");
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    study = write_study(tmp_path_factory.mktemp("study"))
    report_page.write_study(results.load_study(study), study / "page.html")
    return study / "page.html"


def chromium(*arguments, dark):
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--virtual-time-budget=10000", *scheme, *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def framed(page, width, height, name):
    """Write a page with another in a frame: a window itself cannot be as narrow as a phone."""
    frame = page.with_name(f"{name}-{width}.html")
    frame.write_text(
        "<!doctype html><style>body { margin: 0 } iframe { border: 0 }</style>"
        "<script>onmessage = m => { document.title = JSON.stringify(m.data) }</script>"
        f'<iframe src="{page.name}" width="{width}" height="{height}"></iframe>'
    )
    return frame


def measure(page, width, dark):
    copy = page.with_name("measured.html")
    copy.write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
    frame = framed(copy, width, 900, "measure")
    dumped = chromium("--dump-dom", frame.as_uri(), dark=dark)
    title = dumped.partition("<title>")[2].partition("</title>")[0]
    return json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize(("device", "dark"), [("desktop", False), ("phone", True),
                                              ("small phone", False)])  # fmt: skip
def test_nothing_sticks_out_and_no_label_lies_on_another(page, device, dark):
    width = WIDTHS_PX[device]
    measured = measure(page, width, dark)
    assert measured["inner"] == width
    assert measured["scroll"] <= width
    assert measured["figures"] == 29
    assert measured["broken"] == 0
    assert measured["overlaps"] == []
    assert measured["smallest"] >= 5.5  # px; the heatmap's on a phone
    assert measured["figureInk"] == measured["ink"]
    assert measured["ink"] == ("rgb(233, 236, 239)" if dark else "rgb(22, 25, 29)")


def test_the_measure_sees_what_is_wrong(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><body><div style='width: 900px'>wide</div><img src='none.png'>"
        "<svg aria-label='a figure' viewBox='0 0 100 50' width='300'><text x='5' y='20'>one</text>"
        "<text x='8' y='20'>two</text><text x='95' y='40'>three</text></svg></body>"
    )
    measured = measure(page, 390, dark=False)
    assert measured["scroll"] > 390
    assert measured["broken"] == 1
    assert measured["overlaps"] == [["a figure", "two", "one"], ["a figure", "three", "sticks out"]]


@pytest.mark.parametrize(("device", "dark"), [("desktop", False), ("phone", True)])
def test_screenshots(page, device, dark, tmp_path):
    width = WIDTHS_PX[device]
    height = measure(page, width, dark)["height"]
    directory = Path(os.environ.get("KD_JAX_SCREENSHOTS") or tmp_path)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"report-{device}-{'dark' if dark else 'light'}.png"
    frame = framed(page, width, height, "shot")
    window = f"--window-size={max(width, 500)},{height}"
    chromium(window, f"--screenshot={path}", frame.as_uri(), dark=dark)
    with Image.open(path) as image:
        shot = image.convert("RGB").crop((0, 0, width, height))
    shot.save(path)
    pixels = np.asarray(shot).reshape(-1, 3)
    paper = np.array([21, 24, 28] if dark else [255, 255, 255])
    on_paper = np.mean(np.all(pixels == paper, axis=1))
    assert shot.size == (width, height)
    assert 0.5 < on_paper < 0.99  # neither empty nor of another mode

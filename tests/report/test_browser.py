"""The page in a real browser, without a window: what its script does, and that nothing comes from outside."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.report.test_page import make_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

# Added to the page: what goes wrong is noted from the beginning on.
WATCH = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(`refused: ${event.blockedURI}`));
</script>"""
# What a reader does, and what is to be seen then.
ACT = """<script>
const boxes = (kind) => [...document.querySelectorAll(`.box.${kind}`)].map((box) => {
  const [inner, outer] = [box, box.parentNode].map((element) => element.getBoundingClientRect());
  const share = (value, whole) => Math.round((100 * value) / whole);
  return [
    share(inner.left - outer.left, outer.width), share(inner.top - outer.top, outer.height),
    share(inner.width, outer.width), share(inner.height, outer.height), box.textContent,
  ];
});
const look = () => ({
  before: boxes("before"), after: boxes("after"),
  score: document.getElementById("score-value").textContent, count: document.getElementById("count").textContent,
  caption: document.querySelector(".pair .boxes").textContent,
});
const slide = (score) => {
  const slider = document.getElementById("score");
  slider.value = score;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  return look();
};
const truthIsSeen = () => getComputedStyle(document.querySelector(".box.truth")).display !== "none";
const point = (element) => {
  const { left, top, width, height } = element.getBoundingClientRect();
  const place = { bubbles: true, clientX: left + width / 2, clientY: top + height / 2 };
  element.dispatchEvent(new PointerEvent("pointermove", place));
  const tip = document.getElementById("tip");
  return tip.hidden ? null : tip.textContent;
};
addEventListener("load", () => {
  const result = { start: look(), high: slide(0.6), low: slide(0.05) };
  result.truth = [truthIsSeen()];
  document.getElementById("truth").click();
  result.truth.push(truthIsSeen());
  result.tip = point(document.querySelector(".plot svg use[data-tip]"));
  result.noTip = point(document.querySelector("h1"));
  result.width = [document.documentElement.scrollWidth, innerWidth];
  result.loaded = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  result.problems = problems;
  const element = document.createElement("pre");
  element.id = "result";
  element.textContent = JSON.stringify(result);
  parent.document.body.append(element);
});
</script>"""


def browse(page, folder, width=1280):
    """What ACT sees of a page, and what Chromium itself reports of it."""
    watched = html.escape(page.replace("<style>", f"{WATCH}<style>", 1).replace("</body>", f"{ACT}</body>"))
    path = folder / "frame.html"  # a window cannot be as narrow as a phone
    path.write_text(f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{watched}"></iframe>')
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--hide-scrollbars", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout)[1]))
    result["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return result


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with an image of one box before, with a score of 0.5, and two after, of 0.75 and 0.125; one is true."""
    return make_page(tmp_path_factory.mktemp("page"), after=(0.75, 0.125)).html()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_by_itself(page, tmp_path, width):
    seen = browse(page, tmp_path, width)
    quarter = [0, 0, 50, 50]
    assert seen["start"]["before"] == [[*quarter, "0.50"]]
    assert seen["start"]["after"] == [[*quarter, "0.75"]]
    assert seen["high"]["before"] == []
    assert seen["high"]["after"] == [[*quarter, "0.75"]]
    assert seen["low"]["after"] == [[*quarter, "0.13"], [*quarter, "0.75"]]
    assert [seen[time]["score"] for time in ("start", "high", "low")] == ["0.25", "0.60", "0.05"]
    assert seen["high"]["count"] == "Boxes on these images: 0 before, 1 after"
    assert seen["low"]["caption"] == "boxes: 1 before, 2 after, 1 in the ground truth"
    assert seen["truth"] == [False, True]
    assert seen["tip"] == "hand 0.5 (epoch 1)"
    assert seen["noTip"] is None
    assert seen["width"] == [width, width]
    assert (seen["loaded"], seen["problems"], seen["console"]) == ([], [], [])


def test_what_comes_from_outside_would_be_noticed(page, tmp_path):
    image = (tmp_path / "outside.png").as_uri()
    seen = browse(page.replace("</main>", f'<img src="{image}" alt=""></main>'), tmp_path)
    assert any("outside.png" in problem or "refused" in problem for problem in seen["problems"])
    assert seen["console"]

"""The report in a real browser: it opens without a word of complaint, can be used, and reads well on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from minllm.study.report import write_report
from tests.comparisons import comparison, readings
from tests.gradings import ANALYSIS, grading

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NAMES = ("pre", "none", "an arm of a very long name norm=sandwich model/attn=differential optim.lr=0.003")
PHONE, SMALL, DESKTOP = (390, 844), (360, 740), (1280, 900)
READABLE = 4.5
"""The contrast that WCAG asks of text."""

CONTRAST = """() => {
  const light = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(one => one / 255);
    const linear = parts.map(one => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
    return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2];
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratios = {};
  const selectors = ['body', 'h1', '.soft', '.word', '.expected', '.remark', '.figure text', 'th', 'pre', 'summary',
    '.switch button'];
  for (const selector of selectors) {
    const style = getComputedStyle(document.querySelector(selector));
    const ink = light(selector === '.figure text' ? style.fill : style.color);
    ratios[selector] = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  }
  return ratios;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(
            executable_path=found, args=["--no-sandbox"]
        )  # a container's user is root


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory):
    """A page with a report, what it complained of, and what it asked for besides itself."""
    folder = tmp_path_factory.mktemp("compared")
    one = comparison(folder, dict(zip(NAMES, (2.0, 1.9, 2.0005))))
    address = write_report(one, folder / "report", readings(one), None, grading(one), ANALYSIS)[0].as_uri()
    page, complaints, requests = browser.new_page(), [], []
    page.set_default_timeout(0)  # a busy machine may be slow; only a hang would wait for ever
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#curves .scatterlayer .trace")
    return page, complaints, lambda: [request for request in requests if request != address]


@pytest.fixture
def opened(report):
    """Show the report in a window of some size. Whatever it complains of, or asks for, fails the test."""
    page, complaints, requests = report

    def at(size: tuple[int, int], scheme: str = "light"):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=scheme)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_function(
            """['#intervals', '#curves', '#grades', '#recall'].every(name =>
              document.querySelector(`${name} .main-svg`).getBoundingClientRect().right <= innerWidth)"""
        )
        return page

    yield at
    assert complaints == [] and requests() == []


@pytest.mark.parametrize("size", [PHONE, SMALL, DESKTOP], ids=["phone", "small", "desktop"])
def test_the_page_fits_and_begins_with_the_headline(opened, size):
    page = opened(size)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("h1").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= size[1]
    for name in ("#intervals", "#curves", "#grades", "#recall"):
        drawn = page.locator(f"{name} .main-svg").first.bounding_box()
        assert 300 <= drawn["width"] <= size[0]
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("summary").click()


def test_a_click_in_the_legend_hides_an_arm_and_its_band(opened):
    page = opened(DESKTOP)
    shown = "document.querySelector('#curves').data.map(one => one.visible ?? true)"
    lines = page.locator("#curves .scatterlayer .trace")
    assert lines.count() == 7  # three arms' bands and lines, and the floor
    page.locator("#curves .legendtoggle").nth(1).click()
    page.wait_for_function(f"{shown}[2] === 'legendonly'")
    assert page.evaluate(shown) == [True, True, "legendonly", "legendonly", True, True, True]
    page.wait_for_function("document.querySelectorAll('#curves .scatterlayer .trace').length === 5")
    page.locator("#curves .legendtoggle").nth(1).click()
    page.wait_for_function("document.querySelectorAll('#curves .scatterlayer .trace').length === 7")


def test_buttons_change_the_axis(opened):
    page = opened(PHONE)
    title = page.locator("#curves .xtitle")
    ends = "document.querySelector('#curves').data.map(one => Math.max(...one.x))"
    assert title.text_content() == "tokens trained on" and page.evaluate(ends) == [4000] * 7
    page.get_by_role("button", name="FLOPs").click()
    assert title.text_content() == "FLOPs of training" and page.evaluate(ends) == [2.4e10] * 7
    page.get_by_role("button", name="log").click()
    assert page.evaluate("document.querySelector('#curves')._fullLayout.xaxis.type") == "log"
    page.get_by_role("button", name="seconds").click()
    assert title.text_content() == "seconds of training"
    assert page.evaluate(ends) == pytest.approx([4.3] * 7)
    pressed = page.locator(".figure:has(#curves) .switch button[aria-pressed=true]").all_inner_texts()
    assert pressed == ["seconds", "log"]


def test_buttons_change_the_facts_that_are_recalled(opened):
    page = opened(DESKTOP)
    shown = "document.querySelector('#recall').data.map(one => [...one.y])"
    assert page.evaluate(shown) == [[75, None]] * 3
    page.get_by_role("button", name="names").click()
    assert page.evaluate(shown) == [[25, None]] * 3
    page.get_by_role("button", name="any").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened, scheme):
    page = opened(PHONE, scheme)
    ratios = page.evaluate(CONTRAST)
    assert min(ratios.values()) >= READABLE, ratios
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper.strip("rgb()").split(",")[0]) < 64) == (scheme == "dark")


def test_wide_tables_scroll_inside_their_own_place(opened):
    page = opened(PHONE)
    assert page.evaluate(
        "(() => { const one = document.querySelector('.scroll'); return one.scrollWidth > one.clientWidth })()"
    )


def test_a_long_name_leaves_room_for_the_figures_beside_it(opened):
    page = opened(SMALL)
    name = page.locator(".scroll td:first-child").nth(2).bounding_box()
    assert name["width"] <= SMALL[0] / 2
    clipped = """name => [...document.querySelectorAll(`${name} text`)].filter(
      text => text.getBoundingClientRect().right > innerWidth).length"""
    assert [page.evaluate(clipped, name) for name in ("#intervals", "#curves")] == [0, 0]


@pytest.mark.parametrize("size", [SMALL, DESKTOP], ids=["small", "desktop"])
def test_labels_are_not_printed_over_one_another(opened, size):
    page = opened(size)
    boxes = page.evaluate(
        """[...document.querySelectorAll('#intervals .annotation-text, #curves .legendtext')].map(text => {
          const box = text.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]})"""
    )
    assert len(boxes) >= 5
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            apart = left >= other[2] or right <= other[0] or top >= other[3] - 1 or bottom <= other[1] + 1
            assert apart, (boxes[number], other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_differences_between_arms_stand_beside_their_texts(opened, scheme):
    page = opened(DESKTOP, scheme)
    stories = page.locator(".stories").first.locator(".story")
    tops = [stories.nth(number).bounding_box()["y"] for number in range(2)]
    assert stories.count() == 5 and tops[0] == tops[1]

"""The page in a real browser, as a person uses it."""

from __future__ import annotations

import base64
import shutil

import pytest
from serve_process import ROWS
from tiny_model import noise_image, png_bytes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that is open, and everything that it asked for or complained of."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.url = url
        self.page.goto(url)
        self.page.wait_for_selector("#examples button")

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def captions(self):
        return self.page.locator("#results .caption").all_inner_texts()

    def search(self, text):
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        self.page.wait_for_selector("#results:not(.waiting) li")

    def status(self, words):
        self.page.wait_for_function(
            "words => document.getElementById('status').textContent.includes(words)", arg=words
        )


@pytest.fixture
def open_page(browser, server):
    visits = []

    def open_page(**options):
        visits.append(Visit(browser, server[0], **options))
        return visits[-1]

    yield open_page
    for visit in visits:
        # No page ever asks another server, and none has a fault to report.
        assert [url for url in visit.asked if not url.startswith((visit.url, "blob:"))] == []
        assert visit.complaints == []
        visit.context.close()


def test_text_gives_a_grid_with_pictures_scores_and_captions(open_page, tmp_path):
    visit = open_page()
    visit.search("red number 7")
    assert len(visit.captions()) == 24
    scores = [float(s) for s in visit.page.locator("#results .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert "shard.tar" in visit.page.locator("#results .origin").first.inner_text()
    visit.page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 0")
    visit.page.screenshot(path=tmp_path / "text.png")
    assert "text=red" in visit.page.url
    visit.page.reload()
    visit.page.wait_for_selector("#results li")
    assert len(visit.captions()) == 24


def test_more_results_come_on_demand(open_page):
    visit = open_page()
    visit.search("cat")
    visit.page.click("#more")
    visit.page.wait_for_function(f"() => document.querySelectorAll('#results li').length == {ROWS}")


def test_a_dropped_image_finds_itself(open_page):
    visit = open_page()
    data = base64.b64encode(png_bytes(noise_image(23))).decode()
    visit.page.evaluate(
        """async data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "mine.png", {type: "image/png"}));
            for (const name of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    visit.page.wait_for_selector("#results:not(.waiting) li")
    assert visit.captions()[0] == "cat number 23"
    assert "mine.png" in visit.page.locator("#chips").inner_text()


def test_more_like_this_leaves_the_one_out(open_page):
    visit = open_page()
    visit.search("red number 7")
    first = visit.captions()[0]
    visit.page.locator("#results li").first.hover()
    visit.page.locator("#results .like").first.click()
    visit.page.wait_for_url("**like=*")
    visit.page.wait_for_function(
        "first => document.querySelector('#results .caption').textContent != first", arg=first
    )
    visit.page.wait_for_selector("#results:not(.waiting) li")
    assert first not in visit.captions()
    assert first in visit.page.locator("#chips").inner_text()
    visit.page.go_back()
    visit.page.wait_for_function(
        "first => document.querySelector('#results .caption').textContent == first", arg=first
    )


def test_filters_narrow_and_an_empty_result_says_so(open_page):
    visit = open_page()
    visit.search("cat")
    visit.page.click("#more-options")
    visit.page.select_option("#column", "caption")
    visit.page.fill("#value", "number 1")
    visit.page.click("#add")
    visit.status("11 nearest")
    assert all("number 1" in caption for caption in visit.captions())
    visit.page.fill("#value", "nowhere")
    visit.page.click("#add")
    visit.status("Nothing meets")
    assert visit.captions() == []


def test_a_broken_image_is_refused_in_words(open_page):
    visit = open_page()
    visit.page.set_input_files(
        "#file", {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG broken"}
    )
    visit.page.wait_for_selector("#status.wrong")
    assert "picture" in visit.page.locator("#status").inner_text()
    # The browser itself logs the 400, and that the preview cannot be shown.
    visit.complaints = [c for c in visit.complaints if "400 (Bad Request)" not in c]


def test_keyboard_alone_does(open_page):
    visit = open_page()
    page = visit.page
    page.locator("#text").blur()
    page.keyboard.press("/")
    page.keyboard.type("red number 7")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results:not(.waiting) li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    second = visit.captions()[1]
    assert second in page.evaluate("() => document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()
    assert page.locator("#detail-caption").inner_text() == second
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    page.keyboard.press("m")
    page.wait_for_url("**like=*")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_sees_all_of_it(open_page, tmp_path, scheme):
    visit = open_page(
        viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    visit.search("cat")
    page = visit.page
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.screenshot(path=tmp_path / f"{scheme}.png")
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in background[4:-1].split(","))
    assert (red + green + blue < 200) == (scheme == "dark")

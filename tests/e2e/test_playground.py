"""The playground in headless Chromium, as a person uses it. Skipped where there is no Chromium."""

import os
import re
import shutil
from pathlib import Path

import pytest

import multitoken as mt
from multitoken.quickstart.embedded import checkpoint
from tests.serving import Running, running

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
SHOTS = os.environ.get("MULTITOKEN_SCREENSHOTS")  # a folder for screenshots
PROMPT = "Count from 357 to 372."
TIME = 60_000  # milliseconds


@pytest.fixture(scope="module")
def server():
    with running(mt.load(checkpoint("gated")), name="demo") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture()
def page(browser, server: Running, request: pytest.FixtureRequest):
    """A new page. It must have no error, and send requests to the server only."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(TIME)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))

    def console(said) -> None:
        if said.type == "error" and "the server responded with a status" not in said.text:
            troubles.append(said.text)

    def asked(what) -> None:
        if not what.url.startswith((server.url, "data:")):
            troubles.append(what.url)

    page.on("console", console)
    page.on("request", asked)
    yield page
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{request.node.name}.png", full_page=True)
    page.close()
    assert not troubles


def number(page, panel: int, name: str) -> float:
    text = page.locator(f"section.panel >> nth={panel} >> [data-number='{name}']").inner_text()
    return float(text) if text != "–" else 0.0


def finished(page) -> str:
    verdict = page.locator("#verdict")
    playwright.expect(verdict).to_have_text(re.compile("times as fast"), timeout=TIME)
    return verdict.inner_text()


def test_type_and_run(page, server: Running) -> None:
    """Both panels write the model's answer. The second needs fewer passes, and each pass has its own colour."""
    page.goto(f"{server.url}/?k=16")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Run").click()
    assert "The same text." in finished(page)
    text = server.model.generate(PROMPT, policy=mt.NextToken(), max_new_tokens=200).text
    for panel in (0, 1):
        assert page.locator(f"section.panel >> nth={panel} >> .text").inner_text() == text
    assert number(page, 0, "tokens per step") == 1
    assert number(page, 1, "tokens per step") > 3
    assert number(page, 1, "tokens per second") > 0
    chunks = page.locator("section.panel >> nth=1 >> .chunk")
    assert chunks.count() == number(page, 1, "forward passes") < number(page, 0, "forward passes")
    assert chunks.nth(0).get_attribute("class") != chunks.nth(1).get_attribute("class")
    chunks.nth(1).hover()
    playwright.expect(page.locator("section.panel >> nth=1 >> .about")).to_contain_text("Step 2 of")
    assert "confidence" in chunks.nth(1).locator("span").first.get_attribute("title")


def test_it_begins_with_what_the_model_decodes_with(page, server: Running) -> None:
    """The page must start with the model's own settings. Guards against a page whose first run is slower than every other way
    to ask the same model."""
    page.goto(server.url)
    default = server.model.default_policy
    playwright.expect(page.locator("#threshold-value")).to_have_text(f"{default.threshold:.2f}", timeout=TIME)
    assert page.locator("#policy").input_value() == default.name


def test_sliders_act_at_once_and_live_in_the_url(page, server: Running) -> None:
    page.goto(f"{server.url}/?prompt={PROMPT}&policy=exact&threshold=0.5&k=16&max=60")
    assert page.get_by_label("Prompt").input_value() == PROMPT
    page.get_by_role("button", name="Run").click()
    finished(page)
    before = number(page, 1, "tokens per step")
    page.locator("#k").fill("2")
    playwright.expect(page.locator("section.panel >> nth=1 >> h2")).to_contain_text("k 2", timeout=TIME)
    finished(page)
    assert number(page, 1, "tokens per step") <= 2 < before
    assert "k=2" in page.url
    page.locator("#threshold").fill("0.95")
    playwright.expect(page.locator("section.panel >> nth=1 >> h2")).to_contain_text("0.95", timeout=TIME)
    finished(page)
    page.reload()
    assert page.locator("#k").input_value() == "2" and page.locator("#threshold").input_value() == "0.95"


def test_both_panels_answer_one_question(page, server: Running) -> None:
    """Guards against a verdict about two different prompts: one that is typed while the second panel still runs, and one
    of an earlier run whose second panel a slider starts again."""
    page.goto(f"{server.url}/?policy=exact&max=40")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Run").click()
    playwright.expect(page.locator("section.panel >> nth=1 >> .chunk").first).to_be_visible()
    page.get_by_label("Prompt").fill("Say 'cat' 9 times.")
    assert "The same text." in finished(page)
    page.get_by_role("button", name="Run").click()
    assert "The same text." in finished(page)
    page.get_by_role("button", name="Letter").click()
    page.locator("#threshold").fill("0.7")
    assert "The same text." in finished(page)
    panels = [page.locator(f"section.panel >> nth={panel} >> .text").inner_text() for panel in (0, 1)]
    assert panels[0] == panels[1] != ""


def test_by_keyboard_alone(page, server: Running) -> None:
    """Ctrl-Enter in the prompt runs it. The arrow keys then go through the steps of an answer, and screen readers announce
    each step."""
    page.goto(f"{server.url}/?prompt={PROMPT}&max=40")
    page.get_by_label("Prompt").press("Control+Enter")
    finished(page)
    text = page.locator("section.panel >> nth=1 >> .text")
    text.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    about = page.locator("section.panel >> nth=1 >> .about")
    playwright.expect(about).to_contain_text("Step 2 of")
    assert about.get_attribute("aria-live") == "polite"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input,select,textarea,button')].filter(e => !(e.labels?.length || e.textContent)).length"
    )
    assert unnamed == 0, "every control has a name"


def test_on_a_phone_in_the_dark(page, server: Running) -> None:
    """Nothing is wider than the screen, an example runs with one touch, and the replay ends with the same verdict as the run."""
    page.set_viewport_size({"width": 375, "height": 700})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.url}/?max=60")
    page.get_by_role("button", name="Count").click()
    verdict = finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark and "theme=light" in page.url
    page.get_by_role("button", name="Dark or light").click()
    page.get_by_role("button", name="Replay side by side").click()
    assert finished(page) == verdict


def test_an_error_is_told(page, server: Running) -> None:
    page.goto(f"{server.url}/?max=60")
    page.get_by_label("Prompt").fill("word " * 3000)
    page.get_by_role("button", name="Run").click()
    playwright.expect(page.locator("#verdict")).to_contain_text("2048 positions")


def test_the_key_is_asked_for(browser) -> None:
    with running(mt.load(checkpoint("gated")), name="demo", api_key="secret") as server:
        page = browser.new_page()
        page.goto(f"{server.url}/?max=20")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Enter")
        finished(page)
        default = server.model.default_policy
        assert page.locator("#threshold-value").inner_text() == f"{default.threshold:.2f}", (
            "the model's, not the page's"
        )
        assert page.get_by_label("Prompt").input_value() == PROMPT and "max=20" in page.url
        page.close()


def test_an_answer_is_as_long_as_the_server_allows(browser) -> None:
    """The page's own default length must not be refused."""
    with running(mt.load(checkpoint("gated")), name="demo", max_tokens=30) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Count").click()
        finished(page)
        assert page.locator("#max").input_value() == "30"
        page.close()

"""The page in Chromium, from a file: a silent console, the run's numbers under the pointer, keys, themes, a phone.

`make browser` runs these. Elsewhere they are skipped where there is no Chromium; with CI=true that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.html_report import PAGE, write_page
from tests.experiments.html_report.conftest import EVIL

pytestmark = pytest.mark.browser

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1200,900"),
)
TITLE = "How far"  # no text of a run may change it


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium without a window, driven by Selenium."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        programs = None, None
    if None in programs:
        missing = "Chromium, chromedriver or Selenium is not installed: make browser installs them"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Any:
    """Chromium at 1200 pixels in the light theme, with an empty console."""
    resize(chromium, 1200)
    prefer(chromium, "light")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


def resize(browser: Any, width: int) -> None:
    """Sets the width of the screen; below 500 pixels it is a phone's."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(browser: Any, scheme: str) -> None:
    """What the system's theme is."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def load(browser: Any, folder: Path) -> None:
    """Opens the page of a run."""
    browser.get((folder / PAGE).as_uri())


def find(browser: Any, selector: str) -> list[Any]:
    """Elements by a CSS selector."""
    return list(browser.find_elements("css selector", selector))


def hover(browser: Any, element: Any, x: float | None = None, y: float | None = None) -> None:
    """Moves the pointer to the middle of an element, or to a point of the window."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    box = browser.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]", element
    )
    place = {"x": box[0] + (box[2] / 2 if x is None else x), "y": box[1] + (box[3] / 2 if y is None else y)}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", **place})


def shown(number: float) -> str:
    """A number as the page shows it."""
    text = f"{number:.4f}" if abs(number) < 0.0005 else f"{number:.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def press(browser: Any, key: str) -> None:
    """Presses a key, wherever the focus is."""
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key})


def test_it_opens_in_silence_and_loads_nothing(browser: Any, comparison: Path) -> None:
    """From a file: nothing on the console, one request, and each curve is drawn."""
    load(browser, comparison)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if not url.startswith("data:")} == {(comparison / PAGE).as_uri()}
    titles = [each.text for each in find(browser, "#curves h3")]
    assert {
        "Objective J",
        "Score",
        "KL to the reference",
        "Entropy",
        "Clip fraction",
        "Explained variance of V",
    } == set(titles)
    for svg in find(browser, "figure svg"):
        assert svg.size["width"] > 250 and len(svg.find_elements("css selector", "path")) > 4


def test_a_curve_shows_the_numbers_under_the_pointer(browser: Any, comparison: Path) -> None:
    """At the last evaluation of a run."""
    load(browser, comparison)
    row = json.loads((comparison / "ppo/seed-1/metrics.jsonl").read_text().splitlines()[-1])
    text = f"ppo, seed 1 · {row['num_timesteps']:,} tokens · {shown(row['eval/objective'])}"
    points = json.loads(find(browser, "#data")[0].get_attribute("textContent"))["figures"][1]
    x, y, _ = next(point for point in points if point[2] == text)
    svg = find(browser, "#curves svg")[0]
    scale = svg.size["width"] / 340
    hover(browser, svg, x * scale, y * scale)
    assert find(browser, "#tip")[0].text == text


def test_a_token_shows_its_numbers(browser: Any, comparison: Path) -> None:
    """Learned and exact ones, of the evaluation that the keys have stepped to; what colours it is what was picked."""
    load(browser, comparison)
    next(each for each in find(browser, "#run option") if each.text == "ppo, seed 0").click()
    folder = comparison / "ppo/seed-0/samples"
    updates = sorted(int(path.stem) for path in folder.glob("*.jsonl"))
    when = find(browser, "#when")[0]
    assert when.text.startswith("before training ·") and updates[0] == 0
    for update in updates[1:]:
        press(browser, "ArrowRight")
        assert when.text.startswith(f"{'after' if update == updates[-1] else 'at'} update {update} ·")
    press(browser, "ArrowRight")
    assert when.text.startswith(f"after update {updates[-1]} ·")
    for _ in updates:
        press(browser, "ArrowLeft")
    assert when.text.startswith("before training ·")
    press(browser, "ArrowRight")
    row = json.loads((folder / f"{updates[1]}.jsonl").read_text().splitlines()[1])
    tokens = [each for each in find(browser, "#completions .token") if each.get_attribute("data-at").startswith("1:")]
    assert [each.text for each in tokens] == [text.strip() or "end" for text in row["tokens"]]
    hover(browser, tokens[0])
    numbers = {
        (th.text, td.text) for th, td in zip(find(browser, "#card tbody th"), find(browser, "#card td"), strict=True)
    }
    known = row["exact"]
    for label, value in (
        *(("advantage", row["advantage"]), ("V", row["value"])),
        *(("advantage", known["advantage"]), ("V", known["value"]), ("V*", known["optimal_value"])),
        *(("Q*", known["optimal_q"]), ("entropy", row["entropy"])),
    ):
        assert (label, shown(value[0])) in numbers, (label, numbers)
    saved = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    for name, values in (("entropy", row["entropy"]), ("cost", known["cost"])):
        find(browser, f"#metrics [data-metric={name}]")[0].click()
        most = max(abs(x) for each in saved for x in (each | each["exact"])[name])
        share = "return parseFloat(arguments[0].style.getPropertyValue('--share'))"
        shares = [browser.execute_script(share, token) for token in tokens]
        assert shares == pytest.approx([72 * abs(x) / most for x in values], abs=0.1)


def test_a_tap_keeps_the_numbers_while_stepping(browser: Any, comparison: Path) -> None:
    """The card is of the same place in the other evaluation's completion; Escape closes it."""
    load(browser, comparison)
    find(browser, "#completions .token")[0].click()
    card = find(browser, "#card")[0]
    before = card.text
    press(browser, "ArrowRight")
    assert card.is_displayed() and card.text != before
    press(browser, "Escape")
    assert not card.is_displayed()


def test_the_themes(browser: Any, comparison: Path) -> None:
    """That of the system, and the other one by the button; the curves follow."""

    def colours() -> tuple[str, str]:
        paper = find(browser, "body")[0].value_of_css_property("background-color")
        return paper, find(browser, "figure svg text")[0].value_of_css_property("fill")

    load(browser, comparison)
    light = colours()
    prefer(browser, "dark")
    dark = colours()
    assert light[0] != dark[0] and light[1] != dark[1]
    find(browser, "#theme")[0].click()
    assert colours() == light
    find(browser, "#theme")[0].click()
    assert colours() == dark


def test_a_phone_shows_all_of_it(browser: Any, comparison: Path) -> None:
    """At 390 pixels nothing is wider than the screen, and a tap on a token opens the numbers at the bottom."""
    resize(browser, 390)
    load(browser, comparison)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    ends = "[...document.querySelectorAll('main *, header *')].map(each => each.getBoundingClientRect().right)"
    assert browser.execute_script(f"return Math.max(...{ends})") <= 390.5
    token = find(browser, "#completions .token")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    token.click()
    box = find(browser, "#card")[0].rect
    assert box["width"] <= 390 and box["x"] >= 0 and find(browser, "#card")[0].is_displayed()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_texts_are_shown_and_not_run(browser: Any, evil: Path) -> None:
    """Markup, a script, the writing direction and control characters in prompts, completions and tokens."""
    write_page([evil / "ppo" / "seed-0"], evil / PAGE)
    load(browser, evil)
    assert browser.get_log("browser") == [] and browser.title.startswith(TITLE)
    texts = [each.text for each in find(browser, "#completions .prompt")]
    assert texts[:3] == EVIL[:3] and r"\u202egnitirw" in texts[3] and "שלום עולם" in texts[3]
    tokens = [each.text for each in find(browser, "#completions .token")]
    assert EVIL[0] in tokens and EVIL[1] in tokens and find(browser, "main img") == []
    hover(browser, find(browser, "#completions .token")[0])
    assert find(browser, "#card h4")[0].text == EVIL[0] and browser.title.startswith(TITLE)

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

import gymnasium as gym
import pytest

from experiments.html_report import PAGE, write_page
from experiments.html_report.page import render
from experiments.html_report.runs import read_runs
from experiments.state_tree import state_tree
from tests.experiments.html_report.conftest import EVIL
from textenv import exact

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
    """Chromium at 1200 pixels in the light theme, with an empty console, in a tab that has kept nothing."""
    before = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    opened = chromium.current_window_handle
    chromium.switch_to.window(before)
    chromium.close()
    chromium.switch_to.window(opened)
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


def choose_run(browser: Any, name: str) -> None:
    """Picks a run, and leaves the list, in which the arrow keys are the list's."""
    next(each for each in find(browser, "#run option") if each.text == name).click()
    browser.execute_script("document.activeElement.blur()")


def card(browser: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The numbers of the card: sampled or learned ones, and exact ones, by their labels."""
    rows = [
        [cell.text for cell in row.find_elements("css selector", "th, td")] for row in find(browser, "#card tbody tr")
    ]
    sides = [{row[i]: row[i + 1] for row in rows if row[i]} for i in (0, 2)]
    return sides[0], sides[1]


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
    text = f"PPO, seed 1 · {row['num_timesteps']:,} tokens · {shown(row['eval/objective'])}"
    points = json.loads(find(browser, "#data")[0].get_attribute("textContent"))["figures"][1]
    x, y, _ = next(point for point in points if point[2] == text)
    svg = find(browser, "#curves svg")[0]
    scale = svg.size["width"] / 340
    hover(browser, svg, x * scale, y * scale)
    assert find(browser, "#tip")[0].text == text


def test_a_token_shows_its_numbers(browser: Any, comparison: Path) -> None:
    """Learned and exact ones, of the evaluation that the keys have stepped to; what colours it is what was picked."""
    load(browser, comparison)
    choose_run(browser, "PPO, seed 0")
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
    known = row["exact"]
    learned, exact = card(browser)
    assert {name: learned[name] for name in ("advantage", "V", "entropy")} == {
        name: shown(values[0])
        for name, values in {"advantage": row["advantage"], "V": row["value"], "entropy": row["entropy"]}.items()
    }
    labels = {
        "advantage": "advantage",
        "value": "V",
        "optimal_value": "V*",
        "optimal_q": "Q*",
        "cost": "cost of J* \N{MINUS SIGN} J",
    }
    assert exact == {
        label: shown(known[name][0]) for name, label in (labels | {"state_cost": "cost of the state"}).items()
    }
    assert learned["V"] != exact["V"]  # control: the columns could be exchanged
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


def test_a_reload_shows_what_was_open(browser: Any, comparison: Path) -> None:
    """The theme, what is unfolded, the run, the evaluation, the metric and the token; the address stays as it was."""
    load(browser, comparison)
    choose_run(browser, "PPO, seed 1")
    find(browser, "#theme")[0].click()
    find(browser, "#metrics [data-metric=entropy]")[0].click()
    for key in ["ArrowRight"] * 150 + ["ArrowLeft"] * 150 + ["ArrowRight"]:
        press(browser, key)
    find(browser, "#tree .walk:not([open]) summary")[0].click()
    find(browser, "#completions .token")[1].click()

    def view() -> list[Any]:
        return [
            browser.execute_script("return document.documentElement.dataset.theme"),
            browser.execute_script("return [...document.querySelectorAll('details')].map(each => each.open)"),
            *(find(browser, each)[0].text for each in ("#when", "#meaning", "#run option:checked")),
            find(browser, ".token.on")[0].get_attribute("data-at"),
            browser.current_url,
        ]

    before = view()
    assert before[0] == "dark" and "nats" in before[3] and before[4] == "PPO, seed 1"
    browser.refresh()
    assert view() == before and before[-1] == (comparison / PAGE).as_uri()
    assert browser.get_log("browser") == []  # 300 steps are no flood of anything
    browser.execute_script("window.onpagehide = () => sessionStorage.setItem('textenv ' + location.pathname, '{')")
    for fragment in ("", "#%", "#ppo%2C%20seed%200"):  # damaged storage and any address
        browser.get("about:blank")
        browser.get((comparison / PAGE).as_uri() + fragment)
        assert len(find(browser, "#completions .token")) > 3 and browser.get_log("browser") == []


def test_the_first_view_tells_something(browser: Any, comparison: Path, tmp_path: Path) -> None:
    """Where the exact advantage is known it colours the tokens before the training; else the learned one, after it."""
    load(browser, comparison)
    choose_run(browser, "PPO, seed 0")
    pressed = find(browser, "#metrics [aria-pressed=true]")
    assert [each.get_attribute("data-metric") for each in pressed] == ["exact_advantage"]
    assert find(browser, "#when")[0].text.startswith("before training")
    folder = tmp_path / "run"
    shutil.copytree(comparison / "ppo" / "seed-0", folder)
    for path in (folder / "samples").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "exact"}) + "\n" for row in rows))
    write_page([folder], folder / PAGE)
    load(browser, folder)
    assert find(browser, "#metrics [aria-pressed=true]")[0].get_attribute("data-metric") == "advantage"
    assert find(browser, "#when")[0].text.startswith("after update")


def test_a_run_that_trains_has_no_last_update(browser: Any, comparison: Path, tmp_path: Path) -> None:
    """Its newest evaluation is "at" an update, and not "after" the training."""
    folder = tmp_path / "run"
    shutil.copytree(comparison, folder)
    (folder / "ppo/seed-0/summary.json").unlink()
    write_page([folder], folder / PAGE)
    load(browser, folder)
    for name, word in (("PPO, seed 0", "at"), ("PPO, seed 1", "after")):
        choose_run(browser, name)
        for _ in range(9):
            press(browser, "ArrowRight")
        assert find(browser, "#when")[0].text.startswith(f"{word} update")


def test_the_keyboard_alone(browser: Any, comparison: Path) -> None:
    """One token is a tab stop; up and down walk the tokens, left and right keep the place; a list has its own keys."""
    load(browser, comparison)
    choose_run(browser, "PPO, seed 0")
    tokens = find(browser, "#completions .token")
    stops = [each for each in tokens if each.get_attribute("tabindex") == "0"]
    assert len(stops) == 1 < len(tokens)
    browser.execute_script("arguments[0].focus()", stops[0])
    focus = "return document.activeElement.dataset.at"
    press(browser, "ArrowDown")
    assert browser.execute_script(focus) == tokens[1].get_attribute("data-at")
    assert len(find(browser, "#completions .token[tabindex='0']")) == 1
    when = find(browser, "#when")[0].text
    press(browser, "ArrowRight")
    assert browser.execute_script(focus) == "0:1" or browser.execute_script(focus) == "0:0"
    assert find(browser, "#when")[0].text != when
    press(browser, "Enter")
    assert find(browser, "#card")[0].is_displayed()
    when = find(browser, "#when")[0].text
    browser.execute_script("document.getElementById('run').focus()")
    press(browser, "ArrowRight")
    assert find(browser, "#when")[0].text == when
    assert find(browser, "#metrics [role=radio], [role=radiogroup]") == []


def test_a_button_at_the_end_keeps_the_focus(browser: Any, comparison: Path) -> None:
    """It is marked as disabled and does nothing; the keys go on from there."""
    load(browser, comparison)
    button = find(browser, "#next")[0]
    for _ in range(9):
        button.click()
    when = find(browser, "#when")[0].text
    assert when.startswith("after update") and button.get_attribute("aria-disabled") == "true"
    assert browser.execute_script("return document.activeElement.id") == "next"
    press(browser, "ArrowLeft")
    assert find(browser, "#when")[0].text != when and button.get_attribute("aria-disabled") == "false"  # control


def test_the_numbers_cover_no_text_where_there_is_room(browser: Any, comparison: Path) -> None:
    """They are between the completions and their scores; with a text as wide as the page they are below the token."""
    covered = """arguments[0].dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
        const card = document.getElementById("card").getBoundingClientRect();
        const texts = [...document.querySelectorAll("#completions .token, #completions .score")];
        return card.width === 0 ? "hidden" : texts.filter((each) => {
            const box = each.getBoundingClientRect();
            return box.left < card.right && card.left < box.right && box.top < card.bottom && card.top < box.bottom;
        }).length"""  # at once: scrolling hides them
    load(browser, comparison)
    browser.execute_script("document.getElementById('tokens').scrollIntoView()")
    tokens = find(browser, "#completions .token")
    assert [browser.execute_script(covered, token) for token in tokens] == [0] * len(tokens)
    wide = "document.querySelector('#completions .prompt bdi').textContent = 'word '.repeat(300)"
    browser.execute_script(wide)  # control
    assert browser.execute_script(covered, tokens[0]) > 0


def test_what_is_not_known_is_a_dash_and_what_cannot_be_is_not_in_the_legend(
    browser: Any, comparison: Path, tmp_path: Path
) -> None:
    """A sum over a column with a null; the least cost of a state is 0. EOS alone is "end"."""
    folder = tmp_path / "run"
    shutil.copytree(comparison / "ppo" / "seed-0", folder)
    for path in (folder / "samples").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[0]["reward_terms"]["score"][0] = None
        rows[0]["tokens"][0] = ""  # a part of a character
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([folder], folder / PAGE)
    load(browser, folder)
    find(browser, "#metrics [data-metric=reward]")[0].click()
    sums = [each.text for each in find(browser, "#completions .score b")]
    assert sums[0] == "· sum \N{EN DASH}" and "\N{EN DASH}" not in sums[1]
    assert find(browser, "#low")[0].text.startswith("\N{MINUS SIGN}")
    find(browser, "#metrics [data-metric=state_cost]")[0].click()
    assert find(browser, "#low")[0].text == "0"
    first = [each for each in find(browser, "#completions .token") if each.get_attribute("data-at") == "0:0"]
    assert first[0].text == "·"
    saved = [json.loads(line) for line in (folder / "samples/0.jsonl").read_text().splitlines()]
    assert len(find(browser, "#completions .token.end")) == sum(row["stopped"] for row in saved)


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


def check_width(browser: Any, width: int) -> None:
    """Fails if anything ends beyond the screen."""
    wide = """return [...document.querySelectorAll("main *, header *")].filter(
        (each) => each.getBoundingClientRect().right > arguments[0] + 0.5).map((each) => each.outerHTML.slice(0, 99))"""
    assert browser.execute_script(wide, width) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_phone_shows_all_of_it(browser: Any, comparison: Path) -> None:
    """At 390 pixels nothing is wider than the screen, and a tap on a token opens the numbers at the bottom."""
    resize(browser, 390)
    load(browser, comparison)
    check_width(browser, 390)
    token = find(browser, "#completions .token")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    token.click()
    box = find(browser, "#card")[0].rect
    assert box["width"] <= 390 and box["x"] >= 0 and find(browser, "#card")[0].is_displayed()
    check_width(browser, 390)


def test_a_phone_shows_the_deepest_tree_and_the_longest_token(browser: Any, evil: Path) -> None:
    """TajMahal with every state open, a token of 60 characters, long names of agents, in the dark theme."""
    solution = exact.solve(gym.make_vec("textenv/TajMahal-v0"))
    runs = read_runs([evil])
    runs.trials = {f"{name} (learning-rate 0.0001, a/folder/with-a-long-name)": of for name, of in runs.trials.items()}
    for run in runs.all:
        run.tree = state_tree(solution, exact.evaluate_log_probs(solution.tree, solution.tree.ref_log_probs))
        long = [each._replace(tokens=["W" * 60, *each.tokens[1:]]) for each in run.steps[0].completions]
        run.steps[0] = run.steps[0]._replace(completions=long)
    (evil / PAGE).write_text(render(runs), encoding="utf-8")
    resize(browser, 390)
    prefer(browser, "dark")
    load(browser, evil)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    texts = [each.text for each in find(browser, "#tree .state")]
    assert "paris" in texts and len(texts) > 1000 and "W" * 60 in [each.text for each in find(browser, ".token")]
    check_width(browser, 390)
    browser.execute_script("document.querySelector('main').append(Object.assign(document.createElement('i'), {"
                           "style: 'position: absolute; left: 391px', textContent: 'x'}))")  # fmt: skip
    with pytest.raises(AssertionError):  # control
        check_width(browser, 390)


def test_texts_are_shown_and_not_run(browser: Any, evil: Path) -> None:
    """Markup, a script, the writing direction and control characters in prompts, completions and tokens."""
    write_page([evil / "ppo" / "seed-0"], evil / PAGE)
    load(browser, evil)
    assert browser.get_log("browser") == [] and browser.title.startswith(TITLE)
    texts = [each.text for each in find(browser, "#completions .prompt")]
    assert texts[:3] == EVIL[:3] and "\u2066\\u202e\u2069gnitirw" in texts[3] and "שלום עולם" in texts[3]
    tokens = [each.text for each in find(browser, "#completions .token")]
    assert EVIL[0] in tokens and EVIL[1] in tokens and find(browser, "main img") == []
    hover(browser, find(browser, "#completions .token")[0])
    assert find(browser, "#card h4")[0].text == EVIL[0] and browser.title.startswith(TITLE)

"""The lecture as a notebook: what is saved of it can be read anywhere, and it runs, with the numbers that it claims."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import nbformat
import numpy as np
import pytest

from tests.helpers.notebook import NOTEBOOK, clean, execute, read

PATHS = re.compile(r"/(home|root|tmp|Users|mnt|usr|opt|work)/|[A-Z]:\\\\|site-packages|ipykernel_\d")
# what the cells leave behind, as JSON
NUMBERS = """
import json
print(json.dumps({
    "objectives": [reference.objective, solution.objective],
    "gaps": [gaps.tolist(), (tree.mdp.kl_coef * np.array(kls)).tolist()],
    "slope": slope,
    "noise": noise,
    "blame": {name: weights.tolist() for name, weights in blame.items()},
    "critic": [error for _, error in history],
    "effective": effective,
    "binds": list(binds.values()),
    "shares": {name: [[float(np.interp(at, *zip(*points))) for points in runs] for at in (3_000, 12_000)]
               for name, runs in curves.items()},
    "left": [costs.sum(), toy_solution.objective - evaluation.objective],
}))
"""


def test_it_is_valid_and_was_run_from_top_to_bottom() -> None:
    """Every code cell in order, no error; it is small, and names no path of a machine."""
    notebook = read()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)) and len(notebook.cells) >= 20
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 4
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 600_000
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not PATHS.search(without_pictures), PATHS.search(without_pictures)
    assert PATHS.search("File /tmp/ipykernel_12/3.py")  # control


def test_one_idea_a_cell_and_its_links_exist() -> None:
    """A text stands before every code cell but the imports; short cells; relative links name files."""
    cells = read().cells
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and len(cell.source.splitlines()) <= 45
        else:
            assert len(cell.source.splitlines()) <= 16
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


def test_what_is_saved_does_not_depend_on_the_machine() -> None:
    """Warnings, times and addresses of objects are removed; the saved notebook has none left."""
    notebook = read()
    before = nbformat.writes(notebook)
    clean(notebook)
    assert nbformat.writes(notebook) == before
    cell = notebook.cells[1]
    cell.metadata = {"execution": {"iopub.status.busy": "2026"}}
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="/tmp/ipykernel_12/3.py"),
        nbformat.v4.new_output("display_data", {"text/html": "<b>", "text/plain": "<object at 0x7f>"}),
    ]
    assert PATHS.search(nbformat.writes(notebook))  # control
    clean(notebook)
    assert not PATHS.search(str(cell)) and "0x7f" not in str(cell) and "2026" not in str(cell)


@pytest.mark.slow
def test_it_runs_and_its_numbers_are_as_it_says() -> None:
    """Executed as it is, and one more cell that prints what it has left behind."""
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(NUMBERS))
    execute(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    warned = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in warned if "IProgress not found" not in text] == []  # that is tqdm without ipywidgets
    found: Any = json.loads(notebook.cells[-1].outputs[0].text)
    assert found["objectives"] == pytest.approx([-0.118, 1.166], abs=1e-3)
    assert found["gaps"][0] == pytest.approx(found["gaps"][1], abs=1e-9)
    assert -0.6 < found["slope"] < -0.4
    noise = found["noise"]
    assert noise["advantage"] < noise["reward to go - V(s_t)"] < noise["whole return"]
    assert noise["advantage"] < noise["Q"]
    blame = found["blame"]  # of "paris", the sixth word
    assert blame["whole return"][1] == pytest.approx(blame["whole return"][5]) and blame["whole return"][1] < -0.5
    assert blame["advantage"][5] < -1 and abs(blame["advantage"][1]) < 0.01
    assert found["critic"][-1] < 0.1 * found["critic"][0]
    assert found["effective"][0] == pytest.approx(1) and found["effective"] == sorted(found["effective"], reverse=True)
    assert [each for side in found["binds"] for each in side] == pytest.approx([1.2, 1.5, 0.5, 0.8], abs=0.02)
    assert found["left"][0] == pytest.approx(found["left"][1])
    early, end = ({name: shares[i] for name, shares in found["shares"].items()} for i in range(2))
    assert min(early["PPO"]) > max(early["REINFORCE"] + early["ActorCritic"]) + 0.02
    assert all(np.mean(shares) > 0.65 for shares in end.values())

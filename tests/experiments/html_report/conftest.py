"""A small comparison on an enumerated task, and copies of it with texts that a page must not run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agents.files import write_json

EVIL = [
    "<script>document.title = 'run'</script>",
    "</script><img src=x onerror=\"document.title = 'run'\">",
    "<b>bold</b> & &amp; {{ 7 * 7 }}",
    "\u202egnitirw\u202c \x1b[31m \x00 שלום עולם",
]


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`compare` of two agents with two seeds; PPO has a value head, REINFORCE has none."""
    from tests.helpers.commands import call

    out = tmp_path_factory.mktemp("report") / "run"
    flags = (
        "--env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 3 num_prompts 2 --agents reinforce ppo --seeds 0 1"
    )
    more = f"--total-timesteps 400 --num-evals 3 --n-episodes 16 --kl-coef 0.2 --num-workers 1 --out {out}"
    done = call("compare", *flags.split(), *more.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"see {out / 'report.html'}"
    return out


@pytest.fixture(scope="session")
def evil(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison with markup and control characters in prompts, completions and tokens of PPO's first seed."""
    out = tmp_path_factory.mktemp("evil") / "run"
    shutil.copytree(comparison, out)
    for path in (out / "ppo" / "seed-0" / "samples").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, text in zip(rows, EVIL, strict=True):
            row |= {"prompt": text, "completion": text, "tokens": [text, *row["tokens"][1:]]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def copy_run(run: Path, to: Path, **flags: object) -> Path:
    """A copy of the folder of a run, with other flags."""
    shutil.copytree(run, to)
    content = json.loads((to / "config.json").read_text())
    content["flags"] |= flags
    write_json(to / "config.json", {name: value for name, value in content.items() if name != "checksum"})
    return to

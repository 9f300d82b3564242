"""What was foreseen of a reward, from a run's files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.examples.foresight import Args, compare, main

BETA = 0.5
REWARDS = {"good": 1.0, "bad": 0.0, "odd": 0.5}


def write_run(folder: Path, policy: dict[str, int]) -> Path:
    """A run whose reference has said each word equally often, and whose policy has said them so often."""
    for name in ("initial", "samples"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"flags": {"kl_coef": BETA}}))
    rows = [
        {"prompt": prompt, "completion": f"So {word}.", "reward": reward}
        for prompt in ("a", "b")
        for word, reward in REWARDS.items()
        for _ in range(10)
    ]
    (folder / "initial" / "reference.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [{"completion": word} for word, count in policy.items() for _ in range(count)]
    (folder / "samples" / "10.jsonl").write_text("\n".join(map(json.dumps, said)))
    (folder / "samples" / "9.jsonl").write_text(json.dumps({"completion": "an earlier one"}))
    return folder


def test_the_optimum_is_that_of_the_weights(tmp_path: Path) -> None:
    """pi*(word) ~ exp(r / beta); a policy that has moved there was foreseen, one that went the other way was not."""
    weights = np.exp(np.array([*REWARDS.values()]) / BETA)
    counts = dict(zip(REWARDS, (1000 * weights / weights.sum()).round().astype(int).tolist(), strict=True))
    found = compare(write_run(tmp_path / "there", counts))
    assert found.words == sorted(["so", ".", *REWARDS])
    share = dict(zip(found.words, found.optimum, strict=True))
    assert [share[word] for word in REWARDS] == pytest.approx((weights / weights.sum()).tolist())
    assert share["so"] == pytest.approx(1.0)
    moved = [found.words.index(word) for word in REWARDS]
    foreseen, change = (x[moved] - found.reference[moved] for x in (found.optimum, found.policy))
    assert change == pytest.approx(foreseen, abs=1e-3)
    away = compare(write_run(tmp_path / "away", {"good": 1, "bad": 98, "odd": 1}))
    assert away.correlation < found.correlation and away.same_direction(3) < found.same_direction(3)


def test_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words and the correlation; a run without completions of the reference is refused."""
    main(Args(write_run(tmp_path, {"good": 9, "bad": 1})))
    printed = capsys.readouterr().out
    assert "good" in printed and "5 words, pi* at beta 0.5: correlation of the foreseen change" in printed
    (tmp_path / "initial" / "reference.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="reference.jsonl"):
        compare(tmp_path)

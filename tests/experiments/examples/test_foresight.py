"""What was foreseen of a reward, from a run's files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import FlagError
from experiments.examples.foresight import Args, compare, main

BETA = 0.5
REWARDS = {"good": 1.0, "bad": 0.0, "odd": 0.5}


def set_flags(folder: Path, **flags: object) -> None:
    """Writes the configuration."""
    (folder / "config.json").write_text(json.dumps({"flags": flags}))


def write_run(folder: Path, policy: dict[str, int]) -> Path:
    """A run whose reference has said each word equally often, and whose policy has said them so often."""
    for name in ("initial", "samples"):
        (folder / name).mkdir(parents=True)
    set_flags(folder, kl_coef=BETA)
    (folder / "initial" / "baselines.json").write_text(json.dumps({"optimum_completions": 30.0}))  # of each prompt
    rows = [
        {"prompt": prompt, "completion": f"So {word}.", "reward": reward, "kl": 0.0}
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
    assert "(by chance, with shuffled weights, " in printed
    for path in (tmp_path / "samples").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="samples holds no completions; train with --samples-per-eval"):
        compare(tmp_path)
    (tmp_path / "initial" / "reference.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"reference\.jsonl"):
        compare(tmp_path)


def test_beta_is_that_of_the_run_or_given(tmp_path: Path) -> None:
    """A run without --kl-coef had that of its task, which the folder does not name: refused until it is given."""
    run = write_run(tmp_path, {"good": 9, "bad": 1})
    known = compare(run)
    set_flags(run, kl_coef=None)
    with pytest.raises(FlagError, match="the run had no --kl-coef, so give --kl-coef here"):
        compare(run)
    (run / "initial" / "baselines.json").write_text("{}")
    with pytest.raises(FlagError, match="train with --optimum-completions"):
        compare(run, BETA)
    (run / "initial" / "baselines.json").write_text(json.dumps({"optimum_completions": 30.0}))
    assert compare(run, BETA).optimum.tolist() == known.optimum.tolist()
    assert compare(run, 2.0).optimum.tolist() != known.optimum.tolist()


def test_equal_prompts_are_weighed_each_by_itself(tmp_path: Path) -> None:
    """Neighbours in the file, one of them with other rewards; control: each prompt has a half of the optimum."""
    run = write_run(tmp_path, {"good": 9, "bad": 1})
    path, before = run / "initial" / "reference.jsonl", compare(run)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[30:]:
        row["reward"] += 5.0  # a constant of a prompt moves no weight
    path.write_text("\n".join(json.dumps(row | {"prompt": "a"}) for row in rows))
    assert compare(run).optimum == pytest.approx(before.optimum)


def test_the_weights_are_corrected_for_the_policy_that_has_sampled(tmp_path: Path) -> None:
    """Where it has a word twice as often as the reference, log 2 of each is taken off; control: without, it is more."""
    run = write_run(tmp_path, {"good": 9, "bad": 1})
    path, before = run / "initial" / "reference.jsonl", compare(run)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    log_ratio = {"So good.": np.log(1.5), "So bad.": np.log(0.5), "So odd.": 0.0}
    path.write_text("\n".join(json.dumps(row | {"kl": log_ratio[row["completion"]]}) for row in rows))
    found = compare(run)
    weights = np.exp(np.array([*REWARDS.values()]) / BETA) / [1.5, 0.5, 1.0]
    share = dict(zip(found.words, found.optimum, strict=True))
    assert [share[word] for word in REWARDS] == pytest.approx((weights / weights.sum()).tolist())
    assert share["good"] < dict(zip(before.words, before.optimum, strict=True))["good"] - 0.05


def test_shuffled_weights_foresee_nothing(tmp_path: Path) -> None:
    """Their correlation is around 0, with a spread; that of the weights is beyond it. Shares stay those of weights."""
    rng = np.random.default_rng(0)
    run = write_run(tmp_path, {"good": 9, "bad": 1})
    path = run / "initial" / "reference.jsonl"
    words = [f"w{i}" for i in range(40)]
    worth = dict(zip(words, rng.normal(size=40), strict=True))
    rows = [
        {"prompt": prompt, "completion": " ".join(drawn), "reward": sum(worth[w] for w in drawn), "kl": 0.0}
        for prompt in "ab"
        for drawn in rng.choice(words, (30, 8)).tolist()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    best = [{"completion": " ".join(rng.choice(sorted(words, key=worth.get)[20:], 8))} for _ in range(50)]  # type: ignore[arg-type]
    (run / "samples" / "10.jsonl").write_text("\n".join(map(json.dumps, best)))
    found = compare(run)
    mean, spread = found.by_chance
    assert abs(mean) < 0.1 < spread < 0.4 and found.correlation > mean + 2 * spread
    assert found.shuffled.mean(axis=0) == pytest.approx(found.reference, abs=0.05)

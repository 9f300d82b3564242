"""The part `device` of `bench`: kernels and waits of variants, in processes of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from experiments.bench import tables
from experiments.bench.run import names_of
from experiments.bench.standin import NAME
from experiments.bench.variant_process import take_turns
from experiments.bench.work import Work

WORK = Work("smoke", completions=8, prompt=5, tokens=16, epochs=1, device=NAME)


def test_a_round_counts_kernels_and_waits(tmp_path: Path) -> None:
    """Those of the round, not of the start: alike in two rounds. The loop waits less than `generate` at each token."""
    names = ["sampling", "sampling, transformers"]
    assert set(names) < set(names_of("device"))
    found = {rounds: take_turns(names, WORK, rounds, tmp_path, 1) for rounds in (1, 2)}
    for name in names:
        assert [found[rounds][name]["kernels"] for rounds in found] == [found[1][name]["kernels"]] * 2
    loop, peer = (found[1][name] for name in names)
    assert loop["tokens"] == peer["tokens"] == 8 * 16
    assert 0 < loop["waits"] <= 3 and peer["waits"] >= 16 and loop["kernels"] <= 1.1 * peer["kernels"]
    text = "\n".join(tables.device({"smoke": {"work": asdict(WORK), "variants": found[1]}}))
    ratio = peer["waits"] / loop["waits"]
    assert f"sampling, transformers / sampling: {peer['kernels'] / loop['kernels']:.2f} times the kernels" in text
    assert f"{ratio:.2f} times the waits" in text and "8 completions of 16 tokens" in text

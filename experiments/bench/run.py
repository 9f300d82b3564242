"""python -m experiments bench: ours, the peers and a tight loop in turn on the same work."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.bench.environments import environments
from experiments.bench.tables import scaling_figure, table
from experiments.bench.work import SIZES, Work
from experiments.config import FlagError, plain

PEERS = Path(".venv-bench")  # as `make bench` makes it
UPDATES = ["ppo", "ppo, separate critic", "rloo", "tight loop", "tight loop, separate critic"]
SAMPLING = ["sampling", "sampling, our generate", "sampling, tight loop", "sampling, transformers"]
TRL = ["trl ppo", "trl rloo", "trl grpo"]


@dataclass
class BenchConfig:
    """Measure speed and memory: ours, a tight loop, transformers' generate, Gymnasium's CartPole, and TRL in turn.

    TRL takes part where `make bench` has made an environment for it.
    """

    sizes: tuple[str, ...] = ("tiny", "small")
    """Models: tiny (GPT-2 2x128, vocabulary 512), small (4x256, 5000), smoke."""
    variants: tuple[str, ...] = ()
    """What takes part, e.g. "ppo" "tight loop" "trl rloo"; by default all that is there."""
    rounds: int = 7
    """Rounds, in which the variants take turns."""
    answers: int = 64
    """Answers an update."""
    prompt_tokens: int = 16
    """Length of the prompts."""
    answer_tokens: int = 32
    """Length of the answers."""
    epochs: int = 4
    """How often each answer is learned from."""
    threads: int = 1
    """Threads of each process."""
    environment_seconds: float = 20.0
    """How long to step environments; 0 does not."""
    scaling: bool = False
    """Instead: RLOO, ours and TRL's, against answers an update and against their length, in a figure."""
    scaling_answers: tuple[int, ...] = (8, 32, 128, 512)
    """Answers an update, of `answer_tokens` tokens."""
    scaling_tokens: tuple[int, ...] = (16, 64, 256)
    """Lengths of `answers` answers."""
    peers: Path = field(default=PEERS)
    """A virtual environment with TRL; `trl-1.12` in it holds the last that had PPO."""
    out: Path | None = None
    """Where to write bench.json and bench.txt; by default nothing is written."""

    def __post_init__(self) -> None:
        if unknown := set(self.sizes) - set(SIZES):
            raise FlagError(f"--sizes: {sorted(unknown)[0]!r} is none of {', '.join(SIZES)}.")
        if unknown := set(self.variants) - {*UPDATES, *SAMPLING, *TRL}:
            raise FlagError(f"--variants: {sorted(unknown)[0]!r} is none of {', '.join([*UPDATES, *SAMPLING, *TRL])}.")
        if self.rounds < 1:
            raise FlagError(f"--rounds must be at least 1, got {self.rounds}.")

    def here(self) -> list[str]:
        """The variants that can run."""
        wanted = list(self.variants) or [*UPDATES, *SAMPLING, *TRL]
        return [name for name in wanted if not name.startswith("trl") or (self.peers / "bin" / "python").exists()]


class Player:
    """A variant in a process of its own, which plays a round when it is asked to."""

    def __init__(self, config: BenchConfig, name: str, work: Work) -> None:
        python, paths = sys.executable, [str(Path(__file__).parents[2])]
        if name.startswith("trl"):
            python = str(config.peers / "bin" / "python")
        if name == "trl ppo":
            paths.insert(0, str(config.peers / "trl-1.12"))
        if not name.startswith("trl") and "PYTHONPATH" in os.environ:
            paths.append(os.environ["PYTHONPATH"])
        threads = str(config.threads)
        environment = os.environ | {"PYTHONPATH": ":".join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
        self.name, self.rounds = name, list[dict[str, Any]]()
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        self.process = subprocess.Popen(
            [python, "-m", "experiments.bench.worker", name, json.dumps(dataclasses.asdict(work)), threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )
        self._answer()

    def play(self) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            lines = self.said.read().splitlines()
            raise FlagError(f"{self.name} failed: {lines[-1] if lines else 'without a word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """No more rounds."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a variant's rounds."""
    phases = {name: float(np.median([r["phases"][name] for r in rounds])) for name in rounds[0]["phases"]}
    told = {name: float(np.median([r[name] for r in rounds])) for name in ("tokens", "seconds", "cpu")}
    memory = {name: max(r[name] for r in rounds) for name in ("peak_mb", "work_mb")}
    rates = {
        "tokens_per_second": float(np.median([r["tokens"] / r["seconds"] for r in rounds])),
        "tokens_per_cpu_second": float(np.median([r["tokens"] / r["cpu"] for r in rounds])),
    }
    return told | rates | memory | {"phases": phases}


def take_turns(config: BenchConfig, names: Sequence[str], work: Work, rounds: int) -> dict[str, Any]:
    """Every variant plays a round, then every variant the next one. One process computes at a time."""
    with ExitStack() as stack:
        players = []
        for name in tqdm(names, desc=f"{work.size}: starting", leave=False):
            players.append(Player(config, name, work))
            stack.callback(players[-1].stop)
        for _ in tqdm(range(rounds), desc=f"{work.size}: rounds", leave=False):
            for player in players:
                player.play()
        return {player.name: medians(player.rounds) for player in players}


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure, print, and write."""
    found: dict[str, Any] = {
        "command": "python -m experiments " + " ".join(sys.argv[1:]),
        "flags": plain(config),
        "versions": {name: version(name) for name in ("torch", "transformers", "gymnasium", "numpy")},
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
    }
    if config.scaling:
        found["scaling"] = scaling(config)
    else:
        found["sizes"] = {}
        for size in config.sizes:
            work = Work(size, config.answers, config.prompt_tokens, config.answer_tokens, config.epochs)
            found["sizes"][size] = take_turns(config, config.here(), work, config.rounds)
        if config.environment_seconds:
            found["environments"] = environments(config.environment_seconds)
    found["load_after"] = os.getloadavg()
    text = table(found)
    print(text)
    if config.out is not None:
        name = "scaling" if config.scaling else "bench"
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        (config.out / f"{name}.txt").write_text(text + "\n")
        if config.scaling:
            scaling_figure(found["scaling"], config.out / "scaling.png")
    return found


def scaling(config: BenchConfig) -> dict[str, Any]:
    """Tokens a second of RLOO, by answers an update and by their length, one case after the other."""
    names = [name for name in config.here() if name in ("rloo", "trl rloo")]
    found: dict[str, Any] = {"answers": {}, "tokens": {}}
    for axis, values in (("answers", config.scaling_answers), ("tokens", config.scaling_tokens)):
        for value in values:
            base = Work(config.sizes[0], config.answers, config.prompt_tokens, config.answer_tokens, config.epochs)
            changed: dict[str, Any] = {axis: value}
            work = dataclasses.replace(base, **changed)
            found[axis][value] = take_turns(config, names, work, config.rounds)
    return found

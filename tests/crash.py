"""Kills commands at random moments, resumes them until they finish, and compares what they leave with whole runs.

    python -m tests.crash --kills 200 --seed 0

A command is started in a forked OS process, which has the imports of its parent. It gets SIGKILL at a moment that is
uniform over the time that the command works in its folder. It is started again by the same command line. After some
kills it is let finish. Weights, optimizer, metrics and results must then equal those of an uninterrupted run bit for
bit, but for times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import psutil

from agents.files.folders import is_whole
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.faults import become_command, differences, final_state

TOY = "--env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 3 num_prompts 2 --n-episodes 16 --num-evals 4"
COMMANDS = {
    "ppo": f"train --agent ppo --total-timesteps 1500 {TOY}",
    "grpo": f"train --agent grpo --total-timesteps 1500 --grpo.num-generations 4 {TOY}",
    "reinforce": f"train --agent reinforce --total-timesteps 2500 {TOY}",
    "reward-model": "reward-model --pairs pairs.jsonl --model start --epochs 6 --learning-rate 0.01",
    "compare": f"compare --agents ppo reinforce --seeds 0 --num-workers 2 --total-timesteps 1000 {TOY}",
}
EVERY_RUN = "--checkpoint-seconds 0 --out run --resume"
KILLS_PER_RUN = 5
FORK = multiprocessing.get_context("fork")
LIMIT = 600.0  # seconds of one start


@dataclass
class Row:
    """What happened to one command.

    Attributes:
        command: its name.
        kills: SIGKILLs.
        while_writing: kills after which a file or folder was left that was not yet renamed.
        before_checkpoint: kills after which there was no whole checkpoint to resume from; of `compare`, in no trial.
        runs: runs that were killed and finished.
        equal: those that left what a whole run leaves.
        seconds: that a whole run works in its folder.
        problems: what was different, or went wrong.
    """

    command: str
    kills: int
    while_writing: int
    before_checkpoint: int
    runs: int
    equal: int
    seconds: float
    problems: list[str]


class Command:
    """A command of `python -m experiments`, run in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.arguments = [*COMMANDS[name].split(), *EVERY_RUN.split()]
        self.folder = folder
        folder.mkdir(parents=True)
        if name == "reward-model":
            random_classifier("gpt2", resid_pdrop=0.2).save_pretrained(folder / "start")
            word_tokenizer(eos_token="[END]").save_pretrained(folder / "start")
            write_pairs(folder / "pairs.jsonl", 400)

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"

    def start(self) -> ForkProcess:
        """Starts the command, and returns once it works in its folder, or has ended."""
        process = FORK.Process(target=become_command, args=(self.arguments, self.folder, self.folder / "output.txt"))
        process.start()
        while process.is_alive() and self._owner() != process.pid:
            time.sleep(0.005)
        return process

    def _owner(self) -> int | None:
        try:
            return int(json.loads((self.run / "lock.json").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def kill(self, process: ForkProcess, after: float) -> bool:
        """Kills a process after some seconds, unless it has ended; returns whether it was killed.

        Raises:
            RuntimeError: processes that it started live on for a minute.
        """
        process.join(after)
        if not process.is_alive():
            return False
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join()
        _, left = psutil.wait_procs(children, timeout=60)
        if left:
            raise RuntimeError(f"processes outlive their parent: {left}")
        return process.exitcode == -signal.SIGKILL

    def finish(self, process: ForkProcess) -> None:
        """Waits for the end of a process; raises a RuntimeError with what it printed if it failed."""
        process.join(LIMIT)
        if process.exitcode != 0:
            raise RuntimeError(f"exit code {process.exitcode}: {(self.folder / 'output.txt').read_text()[-2000:]}")


def whole_run(name: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Runs a command without an interruption; returns what it leaves, and the seconds that it works in its folder."""
    command = Command(name, folder)
    process = command.start()
    began = time.monotonic()
    command.finish(process)
    return final_state(command.run), time.monotonic() - began


def has_checkpoint(run: Path) -> bool:
    """Whether a folder has a checkpoint that is whole, below it too. One that was not yet renamed is resumed from."""
    names = ("checkpoint", "checkpoint.[0-9]*", ".checkpoint.new")
    return any(is_whole(path) for name in names for path in run.rglob(name))


def crash(name: str, kills: int, rng: random.Random, folder: Path) -> Row:
    """Runs a command again and again, with `kills` kills in all."""
    expected, seconds = whole_run(name, folder / "whole")
    row = Row(name, 0, 0, 0, 0, 0, round(seconds, 1), [])
    while row.kills < kills:
        command = Command(name, folder / f"run-{row.runs}")
        try:
            killed = 0
            while killed < min(KILLS_PER_RUN, kills - row.kills):
                process = command.start()
                if not command.kill(process, rng.uniform(0, seconds)):
                    command.finish(process)
                    break
                killed += 1
                names = [path.name for path in command.run.rglob("*")]
                row.while_writing += any(each.endswith(".new") for each in names)
                row.before_checkpoint += not has_checkpoint(command.run)
            else:
                command.finish(command.start())
            row.kills += killed
            wrong = differences(final_state(command.run), expected)
        except RuntimeError as error:
            row.kills += killed
            wrong = [str(error)]
        row.runs += 1
        row.equal += not wrong
        row.problems += [f"run {row.runs}: {', '.join(wrong)}"] if wrong else []
        if not wrong:
            shutil.rmtree(command.folder)
        print(f"{name}: {row.kills} of {kills} kills, {row.equal} of {row.runs} runs equal", flush=True)
    return row


def table(rows: list[Row]) -> str:
    """The rows as text."""
    columns = ("command", "kills", "while_writing", "before_checkpoint", "runs", "equal", "seconds")
    lines = [[*(name.replace("_", " ") for name in columns)], *([str(getattr(r, n)) for n in columns] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    total = (
        f"{sum(r.kills for r in rows)} kills, {sum(r.equal for r in rows)} of {sum(r.runs for r in rows)} runs equal"
    )
    return "\n".join([*text, total, *(problem for row in rows for problem in row.problems)]) + "\n"


def main() -> None:
    """Parses the command line, and prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--out", type=Path, help="folder for crash.txt and crash.json")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    shares = [(flags.kills + i) // len(flags.commands) for i in range(len(flags.commands))]
    rows = [crash(name, kills, rng, folder / name) for name, kills in zip(flags.commands, shares, strict=True)]
    print(table(rows))
    if flags.out is not None:
        flags.out.mkdir(parents=True, exist_ok=True)
        (flags.out / "crash.txt").write_text(table(rows))
        content = {"seed": flags.seed, "commands": COMMANDS, "rows": [asdict(row) for row in rows]}
        (flags.out / "crash.json").write_text(json.dumps(content, indent=2) + "\n")
    if any(row.problems for row in rows):
        sys.exit(f"runs that differ are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

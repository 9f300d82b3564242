"""The completions that a run's folder keeps, before and after training.

They are those of `samples/UPDATE.jsonl` (`experiments.token_samples`): of update 0, before training, and of the last
one. Both are of the same prompts, sampled with the same random numbers, and have what a reward function gets: token
ids, columns and messages. The other files of a run are not read. `samples.jsonl` has completions of the trained policy
alone, without token ids; `initial/reference.jsonl` has those of the reference, likewise, and none after training.

A folder is data of others: nothing that it names is imported or opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from experiments.agent_classes import short_name
from experiments.errors import FlagError
from experiments.run_folder import CONFIG, read_saved_config, trial_folders
from experiments.token_samples import sample_files
from textenv.data import ConversationText

LARGEST_SCORE = float(np.finfo(np.float32).max)
LARGEST_TOKEN = 2**31 - 1
OLD = "An earlier version wrote the samples, which kept no columns and no messages: prompts are taken as texts."


class KeptCompletion(NamedTuple):
    """A completion as a run has kept it.

    Attributes:
        prompt: its prompt; that of a conversation holds the messages.
        completion: its text.
        token_ids: its tokens, as sampled.
        columns: the further fields of its prompt.
        score: under the run's own reward; None where that failed.
    """

    prompt: str
    completion: str
    token_ids: list[int]
    columns: dict[str, object]
    score: float | None


class Sampled(NamedTuple):
    """Completions of one policy.

    Attributes:
        name: of the policy, in tables.
        agent: the agent that was trained; empty before training.
        completions: N completions.
    """

    name: str
    agent: str
    completions: list[KeptCompletion]


class Run(NamedTuple):
    """What is read of a run.

    Attributes:
        reward: the name of its own reward.
        before: completions of the policy that its trials start from; None where there are none.
        after: completions after the last evaluation of each trial.
        notes: sentences about what is missing.
    """

    reward: str
    before: Sampled | None
    after: list[Sampled]
    notes: list[str]


def read_run(folder: Path) -> Run:
    """Reads the completions of a folder of `train` or `compare`.

    All trials of a comparison start from one policy: completions before training that several have are kept once.

    Raises:
        FlagError: the folder holds no run, or one that has kept no completion.
        DamagedFile: a file was cut off or changed.
    """
    if not (folder / CONFIG).is_file():
        raise FlagError(f"{str(folder)!r} holds no run (no {CONFIG}); pass a folder that `train` or `compare` wrote.")
    flags, places = read_saved_config(folder)["flags"], trial_folders(folder)
    starts: list[list[KeptCompletion]] = []
    after: list[Sampled] = []
    notes: list[str] = []
    for place in places:
        own = read_saved_config(place)["flags"]
        check_types(place / CONFIG, own, {"agent": str, "seed": int})
        agent, paths = short_name(own["agent"]), sample_files(place)
        name = f"{agent}, seed {own['seed']}"
        if not paths:
            notes.append(f"{name} has kept no completion.")
            continue
        if paths[0][0] == 0 and (start := _read(paths[0][1], notes)) not in starts:
            starts.append(start)
        if (last := paths[-1])[0] > 0:
            after.append(Sampled(f"{name}, update {last[0]}", agent, _read(last[1], notes)))
        else:
            notes.append(f"{name} was not evaluated after training yet.")
    before = [completion for start in starts for completion in start]
    if not before and not any(sampled.completions for sampled in after):
        raise FlagError(
            f"{str(folder)!r} has kept no completion in samples/: it was trained with --samples-per-eval 0, or not "
            "evaluated yet. Train it again, with --samples-per-eval 64 for example."
        )
    if not before:
        notes.append("There are no completions before training.")
    return Run(_own_reward(flags), Sampled("before training", "", before) if before else None, after, notes)


def _read(path: Path, notes: list[str]) -> list[KeptCompletion]:
    """Reads a file of samples; raises a DamagedFile where it has none."""
    rows = files.read_rows(path)
    if not rows:
        raise DamagedFile(f"{path} has no whole row: it was cut off. Remove it, and the file before it is read.")
    if any("columns" not in row for row in rows) and OLD not in notes:
        notes.append(OLD)
    return [_completion(path.with_name(f"{path.name}:{i}"), row) for i, row in enumerate(rows, start=1)]


def _completion(place: Path, row: JsonObject) -> KeptCompletion:
    """Checks a row.

    Raises:
        DamagedFile: it is not what a trial writes.
    """
    types = {"prompt": str, "completion": str, "token_ids": list, "score": float | None}
    check_types(place, row, types)
    row = {"columns": {}, "messages": None, **row}
    check_types(place, row, {"columns": dict, "messages": list | None})
    score: float | None = None if row["score"] is None else float(row["score"])
    if score is not None and abs(score) > LARGEST_SCORE:
        raise DamagedFile(f"{place}: score must be finite in float32, got {score:g}.")
    for token in row["token_ids"]:
        check_types(place, {"a token": token}, {"a token": int})
        if token > LARGEST_TOKEN:
            raise DamagedFile(f"{place}: a token must be at most {LARGEST_TOKEN}, got {token!r:.100}.")
    prompt: str = row["prompt"]
    if row["messages"] is not None:
        prompt = ConversationText(prompt, _messages(place, row["messages"]))
    return KeptCompletion(prompt, row["completion"], row["token_ids"], row["columns"], score)


def _messages(place: Path, messages: Sequence[object]) -> list[JsonObject]:
    checked = [message for message in messages if isinstance(message, dict)]
    if len(checked) < len(messages) or not checked:
        raise DamagedFile(f"{place}: messages must be a list of objects, got {messages!r:.100}.")
    for message in checked:
        check_types(place, message, {"role": str, "content": str})
    return checked


def name_reward(names: Sequence[object], weights: object) -> str:
    """The name of a weighted sum of rewards, in tables; without weights they are 1 each."""
    if not isinstance(weights, list) or len(weights) != len(names):
        return " + ".join(map(str, names))
    return " + ".join(f"{weight} * {name}" for weight, name in zip(weights, names, strict=True))


def _own_reward(flags: JsonObject) -> str:
    """The name of the run's reward; where its task brings its own, that of the task."""
    names = flags.get("reward")
    if not isinstance(names, list) or not names:
        return f"the reward of {flags.get('env')}"
    return name_reward(names, flags.get("reward_weights"))

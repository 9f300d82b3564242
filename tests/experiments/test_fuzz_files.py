"""Any damage to any file that a command reads: an error of ours that names it, or what the whole file says.

An input is one damaged file. About half have other bytes, which a checksum must notice. The others are JSON objects
with changed fields and the right checksums, as somebody leaves them who edits files by hand, or wants their reader to
run something: they are refused, or make sense.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from rich.table import Table

from agents import PPO
from agents.files import MANIFEST, DamagedFile, StorageError, read_manifest, write_json
from agents.files.json_objects import CHECKSUM
from experiments.changes import changes_of_surroundings, changes_that_mix
from experiments.checkpoints import newest_checkpoint
from experiments.env_flags import load_reward
from experiments.errors import FlagError
from experiments.html_report.answer import answer, caveats, question
from experiments.html_report.page import samples, tables, tokens, trees
from experiments.html_report.runs import read_runs
from experiments.lecture.memo import Memo
from experiments.lock import locked
from experiments.metrics_file import kept_metrics, read_metrics
from experiments.rescore.kept import read_run
from experiments.rescore.scoring import Rescorer
from experiments.rescore.tables import differences_table, policies_table
from experiments.rescore.twice import ScoredTwice, policies
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.reward_model.fitting import Fit
from experiments.reward_model.pairs import Pair, read_pairs
from experiments.reward_model.training import TRAINING, finished
from experiments.run_folder import read_saved_config
from experiments.saved_run import EvaluateConfig, settings_from_folder
from experiments.summary import read_baselines, read_summary
from tests.helpers import faults
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.fuzz import SEED, fuzz_values
from tests.helpers.fuzzed_files import HOSTILE, damaged, edited
from tests.helpers.inputs import LEAST, Inputs, check_inputs
from tests.helpers.storage import content, rewrite, seal
from tests.helpers.tasks import letter_values
from tests.helpers.toy_run import TRAIN, fit_nothing
from textenv.data import load_prompts
from textenv.rewards import RewardModel

OURS = (FlagError, DamagedFile, StorageError)
AS_FLAG_ERRORS = (*OURS, ValueError, OSError)  # which the command line turns into a FlagError
SAID = "what is missing is said, and measured again or left out"
PAIRS = [Pair("a", "b", "c"), Pair("a", "d", "e")]


class Reader(NamedTuple):
    """How a command reads some files.

    Attributes:
        files: their pattern, relative to the folder that `read` takes.
        read: returns something that can be compared.
        checked: whether other bytes are noticed: the files have checksums.
        errors: that `read` may raise.
    """

    files: str
    read: Callable[[Path], Any]
    checked: bool = True
    errors: tuple[type[Exception], ...] = OURS


def weights(module: torch.nn.Module) -> dict[str, bytes]:
    """The tensors of a module."""
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def flags(folder: Path) -> Any:
    """As `evaluate` and `train --resume` read the flags of a run."""
    config, saved = settings_from_folder(EvaluateConfig(run=folder / "run")), read_saved_config(folder / "run")
    changes_of_surroundings(config, saved)
    changes_that_mix(config, saved)
    return config


def policy(folder: Path) -> Any:
    """As `evaluate` reads a policy."""
    return weights(EvaluateConfig(run=folder / "run").load()[1])


@functools.cache
def toy() -> Any:
    """The environment of the run."""
    return gym.make_vec("textenv/Toy-v0", num_envs=1, vocab_size=3, max_new_tokens=2, num_prompts=1)


def agent(folder: Path) -> Any:
    """As `train --resume` reads a checkpoint."""
    checkpoint = newest_checkpoint(folder / "run", folder / "run" / "initial")
    assert checkpoint is not None
    loaded = PPO.load(checkpoint.folder, toy())
    moments = [
        {name: value.numpy().tobytes() for name, value in each.items()}
        for each in loaded.optimization.optimizer.state.values()
    ]
    return weights(loaded.policy), moments, loaded.generator.get_state().numpy().tobytes(), loaded.num_timesteps


def metrics(folder: Path) -> Any:
    """As `train --resume` and the report read the metrics. Rows that are missing are a gap, which is said."""
    rows = kept_metrics(folder / "run", read_manifest(folder / "run" / "checkpoint")).rows
    read_metrics(folder / "run")
    return [row["num_updates"] == number and row for number, row in enumerate(rows)] if len(rows) == 4 else SAID


def page(folder: Path) -> Any:
    """As `report` reads a run, without the drawing of its curves."""
    runs = read_runs([folder / "run"])
    return question(runs), answer(runs), caveats(runs), tables(runs), trees(runs), tokens(runs.all), samples(runs)


def rendered(table: Table) -> list[list[Any]]:
    """The cells of a table, column by column."""
    return [list(column.cells) for column in table.columns]


def rescored(folder: Path) -> Any:
    """As `rescore` reads a run, scores its completions and makes its tables."""
    run = read_run(folder / "run")
    sampled = [*([run.before] if run.before else []), *run.after]
    scored = [ScoredTwice.of(each, Rescorer([("letters", letter_values)], None)) for each in sampled]
    table, differences = policies_table(policies(scored), run.reward, ""), differences_table(scored, 3)
    found = differences if isinstance(differences, str) else rendered(differences)
    return rendered(table), found, [each.new.tolist() for each in scored], run.notes


def lock(folder: Path) -> None:
    """As every command takes a folder."""
    with locked(folder / "run"):
        pass


def prompts(folder: Path) -> Any:
    """As `train --prompts` reads a file."""
    tokenizer = word_tokenizer(eos_token="[END]")
    return [load_prompts(folder / name, tokenizer).texts for name in ("prompts.txt", "prompts.jsonl")]


def reward(folder: Path) -> Any:
    """As `train --reward FOLDER` reads a reward model."""
    return weights(load_reward(str(folder / "reward")).model)


def fit(folder: Path) -> Any:
    """As `reward-model --resume` reads its checkpoint."""
    with torch.random.fork_rng(devices=[]):
        new = new_fit()
        new.load(folder / "fit")
        return weights(new.reward.model), new.num_pairs, new.rng.random(), torch.rand(1).item()


def new_fit() -> Fit:
    """The training whose checkpoint is read."""
    start = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    return Fit(start, PAIRS, 2, 1, 1e-3, np.random.default_rng(0))


READERS = [
    Reader("run/config.json", flags),
    Reader("run/initial/baselines.json", lambda folder: read_baselines(folder / "run/initial/baselines.json")),
    Reader("run/summary.json", lambda folder: read_summary(folder / "run")),
    Reader("run/metrics.jsonl", metrics),
    Reader("run/samples/*.jsonl", page, False),
    Reader("run/samples/*.jsonl", rescored, False),
    Reader("run/config.json", rescored),
    *(
        Reader(f"run/{name}", page, False)
        for name in ("config.json", "summary.json", "metrics.jsonl", "initial/*.json")
    ),
    Reader("run/lock.json", lock),
    Reader("run/checkpoint/*", policy),
    Reader("run/checkpoint/[at]*.*", agent, errors=AS_FLAG_ERRORS),  # agent.json, training_state.safetensors
    Reader("reward/*", reward),
    Reader("reward/held_out.json", lambda folder: finished(folder / "reward") or SAID),
    Reader("reward/training.json", lambda folder: read_saved_config(folder / "reward", TRAINING)),
    Reader("fit/*", fit, errors=AS_FLAG_ERRORS),
    Reader("pieces/piece.json", lambda folder: Memo(folder / "pieces")("piece", lambda: [1.5, 2])),
    Reader("prompts.*", prompts, False, AS_FLAG_ERRORS),
    Reader("pairs.jsonl", lambda folder: read_pairs(folder / "pairs.jsonl"), False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files, and a module beside it that nothing may import."""
    root = tmp_path_factory.mktemp("outside")
    (root / f"{HOSTILE}.py").write_text("def run(*args): pass\n")
    inside = root / "inside"
    ended = faults.run(TRAIN, inside, before=fit_nothing)
    assert ended.code == 0, ended.output
    shutil.rmtree(inside / "run" / "checkpoint.1")  # else it is read instead of a damaged one
    ended_process = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1.5}
    write_json(inside / "run" / "lock.json", ended_process)
    random_classifier("gpt2").save_pretrained(inside / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(inside / "start")
    write_pairs(inside / "pairs.jsonl", 80)
    reward_model(
        RewardModelConfig(inside / "pairs.jsonl", str(inside / "start"), inside / "reward", learning_rate=0.05)
    )
    new = new_fit()
    new.run(lambda size, loss: None)
    new.save(inside / "fit")
    Memo(inside / "pieces")("piece", lambda: [1.5, 2])
    rows = [{"prompt": "a b", "answer": 1}, {"prompt": "c", "answer": None}, {"prompt": "a", "answer": [0]}]
    (inside / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (inside / "prompts.txt").write_text("a b\nc\n\nd e f\n")
    return inside


def cases(folder: Path) -> list[tuple[Reader, Path]]:
    """Every file with its reader; no reader is without a file."""
    assert [reader.files for reader in READERS if not any(folder.glob(reader.files))] == []
    return [(reader, path) for reader in READERS for path in sorted(folder.glob(reader.files)) if path.is_file()]


def changed(path: Path) -> st.SearchStrategy[tuple[bool, Any]]:
    """What a file is replaced by, and whether the checksums are made right: bytes, or a JSON object."""
    original = path.read_bytes()
    with_checksums: st.SearchStrategy[Any] = damaged(original)
    if path.suffix == ".json":
        with_checksums = edited(json.loads(original)) | with_checksums
    return st.tuples(st.just(False), damaged(original)) | st.tuples(st.just(True), with_checksums)


def write(path: Path, right: bool, new: Any) -> None:
    """Replaces a file; with `right` the checksums of JSON objects and of the folder's manifest are made right."""
    if isinstance(new, bytes):
        path.write_bytes(new)
    elif CHECKSUM in new:
        write_json(path, {name: value for name, value in new.items() if name != CHECKSUM})
    else:
        path.write_text(json.dumps(new), encoding="utf-8")
    if right and path.name != MANIFEST and (path.parent / MANIFEST).exists():
        seal(path.parent)


def fuzz_file(reader: Reader, path: Path, folder: Path, inputs: Inputs, count: int, start: int = SEED) -> None:
    """Reads a file `count` times, each time with another damage."""
    kept = {each: each.read_bytes() for each in (path, path.parent / MANIFEST) if each.exists()}
    changes, expected = changed(path), reader.read(folder)

    def check(change: tuple[bool, Any]) -> None:
        right, new = change
        try:
            write(path, right, new)
            found = reader.read(folder)
        except reader.errors as error:
            assert str(error) and (right or path.name in str(error) or not reader.checked), f"{path}: {error}"
        else:
            assert right or not reader.checked or found in (expected, SAID), f"{path}: silently different"
        finally:
            for each, content in kept.items():
                each.write_bytes(content)
        assert sys.modules.pop(HOSTILE, None) is None, f"{path}: code was run"

    fuzz_values(inputs, path.relative_to(folder).as_posix(), changes, check, count, start)


def fuzz_files(folder: Path, count: int, some: list[tuple[Reader, Path]]) -> Inputs:
    """Some files, each with `count` damages; nothing is written elsewhere."""
    inputs, before = Inputs(), content(folder.parent)
    for reader, path in some:
        fuzz_file(reader, path, folder, inputs, count)
    assert content(folder.parent) == before
    return inputs


@pytest.fixture(autouse=True)
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module could be imported, and is not yet."""
    monkeypatch.syspath_prepend(folder.parent)
    assert HOSTILE not in sys.modules


@pytest.mark.filterwarnings("ignore")
def test_damaged_files(folder: Path) -> None:
    """A few damages of each."""
    assert len(fuzz_files(folder, 5, cases(folder))) > 20


def test_a_change_that_no_checksum_notices_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the checks of checksums."""
    monkeypatch.setattr("agents.files.json_objects.check_unchanged", lambda path, content: None)
    reader = Reader("run/initial/baselines.json", lambda folder: read_baselines(folder / "run/initial/baselines.json"))
    with pytest.raises(AssertionError, match="silently different"):
        fuzz_file(reader, folder / reader.files, folder, Inputs(), 1000, start=0)


def test_code_that_a_file_names_is_found(folder: Path) -> None:
    """Control: a reader that unpickles."""
    path = folder / "pieces" / "piece.json"

    def read(folder: Path) -> None:
        with contextlib.suppress(Exception):
            pickle.loads(path.read_bytes())

    with pytest.raises(AssertionError, match="code was run"):
        fuzz_file(Reader("pieces/piece.json", read, False), path, folder, Inputs(), 1000, start=0)


@pytest.mark.parametrize("field", ["has_uint32", "uinteger"])
@pytest.mark.parametrize("number", [2**70, -(2**70)])
def test_a_number_that_no_generator_holds(field: str, number: int, folder: Path, tmp_path: Path) -> None:
    """In the generator's state, with the right checksums: an error of ours. Control: as it was, it is read."""
    shutil.copytree(folder / "fit", tmp_path / "fit")
    assert fit(tmp_path) == fit(folder)
    rewrite(tmp_path / "fit", "training_state.json", lambda saved: saved["rng"].update({field: number}))
    with pytest.raises(DamagedFile, match="holds no checkpoint of this model"):
        fit(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", ["files of runs", "other files"])
def test_damaged_files_for_longer(title: str, folder: Path, record_property: Any) -> None:
    """Several hundred damages of each; half of the files in each test, so that two cores can share the work."""
    of_a_run = title == "files of runs"
    some = [case for case in cases(folder) if case[0].files.startswith("run/") == of_a_run]
    kinds = [path.relative_to(folder).as_posix() for _, path in some]
    check_inputs(title, fuzz_files(folder, LEAST, some), kinds, record_property)

"""A run folder of others runs nothing that the command line does not name, and sends no command to the terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.files import DamagedFile, describe, read_json, write_json
from experiments.command_line import main
from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.saved_run import EvaluateConfig, SampleConfig, evaluate, sample
from experiments.trial import run_trial
from tests.helpers.classifiers import random_classifier, word_tokenizer
from tests.helpers.commands import tiny
from tests.helpers.models import model_folder

MODULE = """
import pathlib
import gymnasium as gym
import textenv

MARKER = pathlib.Path({marker!r})
MARKER.touch()

def reward(prompts, completions, **columns):
    return [1.0] * len(prompts)

def task(vocab_size=3):
    return textenv.TextMDP(textenv.WordTokenizer("a b"), ["a"], reward, max_new_tokens=2)

def run(command):
    MARKER.with_name("called").write_text(command)

gym.register("hostile/Task-v0", entry_point="textenv.env:make", vector_entry_point="textenv.vector:make_vec",
             kwargs={{"task": "hostile:task"}}, disable_env_checker=True)
"""

CODE = """
import hostile
from transformers import GPT2Config, GPT2LMHeadModel

class OwnConfig(GPT2Config):
    model_type = "own"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a module named `hostile` leaves when it is imported; no later test finds it imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile.py").write_text(MODULE.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "ran"
    sys.modules.pop("hostile", None)


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory: pytest.TempPathFactory, initial: Path) -> Path:
    """A folder with two short runs, on the smallest toy and on a language model, and what the latter reads."""
    folder = tmp_path_factory.mktemp("saved")
    run_trial(tiny(total_timesteps=40, num_evals=1), folder / "toy", initial)
    model, prompts = model_folder(folder / "model"), folder / "prompts.txt"
    prompts.write_text("a b\n")
    flags: dict[str, Any] = {"env": "textenv/Text-v0", "env_args": {}, "model": str(model), "prompts": str(prompts)}
    flags |= {"reward": ["tests.helpers.tasks:letter_values"], "max_new_tokens": 3, "eval_episodes": 4}
    run_trial(tiny(total_timesteps=40, num_evals=1, **flags), folder / "text", folder / "initial")
    return folder


@pytest.fixture
def toy(saved_runs: Path, tmp_path: Path) -> Path:
    """A copy of the run on a toy."""
    return shutil.copytree(saved_runs / "toy", tmp_path / "run")


@pytest.fixture
def text(saved_runs: Path, tmp_path: Path) -> Path:
    """A copy of the run on a language model, which reads copies of the model and the prompts; without a reward."""
    shutil.copytree(saved_runs / "model", tmp_path / "model")
    shutil.copy(saved_runs / "prompts.txt", tmp_path)
    judge = tmp_path / "judge"
    random_classifier("gpt2").save_pretrained(judge)
    word_tokenizer(eos_token="[END]").save_pretrained(judge)
    folder = shutil.copytree(saved_runs / "text", tmp_path / "run")
    change(folder, model=str(tmp_path / "model"), prompts=str(tmp_path / "prompts.txt"), reward=[str(judge)])
    return folder


def change(folder: Path, **flags: Any) -> None:
    """Changes flags in a run's config.json, as somebody who knows its format would."""
    content = read_json(folder / "config.json")
    content["flags"] |= flags
    write_json(folder / "config.json", content)
    for manifest in folder.glob("checkpoint*/manifest.json"):
        write_json(manifest, read_json(manifest) | {"config": describe(folder / "config.json")})


def commands(folder: Path, **flags: Any) -> None:
    """Runs `evaluate` and `sample`."""
    evaluate(EvaluateConfig(folder, eval_episodes=4, **flags))
    sample(SampleConfig(folder, num=1, **flags))


def refused(folder: Path, message: str, **flags: Any) -> None:
    """Checks that both commands refuse the folder."""
    with pytest.raises(FlagError, match=message):
        evaluate(EvaluateConfig(folder, **flags))
    with pytest.raises(FlagError, match=message):
        sample(SampleConfig(folder, **flags))


@pytest.mark.parametrize(
    ("env_args", "message"),
    [
        ({"task": "hostile:run", "command": "id"}, "--env-args task: .* takes vocab_size, .*kl_coef"),
        ({"task": "hostile:run"}, "--env-args task"),
        ({"policy": "hostile:run"}, "--env-args policy"),
        ({"entry_point": "hostile:run"}, "--env-args entry_point"),
        ({"vector_entry_point": "hostile:run"}, "--env-args vector_entry_point"),
        ({"wrappers": "hostile:run"}, "--env-args wrappers"),
        ({"vectorization_mode": "sync"}, "--env-args vectorization_mode"),
        ({"shaping": "hostile:run"}, "--env-args shaping"),
        ({"vocab_size": "hostile:run"}, "--env-args vocab_size: must be int"),
        ({"vocab_size": 3.0}, "--env-args vocab_size: must be int"),
        ({"vocab_size": True}, "env-args"),
        ({"vocab_size": {"task": "hostile:run"}}, "env-args"),
        ({"vocab_size": None}, "env-args"),
    ],
)
def test_arguments_of_the_registration(toy: Path, marker: Path, env_args: dict[str, Any], message: str) -> None:
    """Only the task's own parameters can be set, in a folder and on the command line."""
    commands(toy)
    change(toy, env_args=env_args)
    refused(toy, message)
    assert not marker.exists() and not marker.with_name("called").exists()
    with pytest.raises(FlagError, match=message):
        tiny(env_args=env_args).make_env()
    assert not marker.exists() and not marker.with_name("called").exists()


@pytest.mark.parametrize(
    "env_args",
    [
        *({"model": "hub/model"}, {"prompts": "/etc/passwd"}, {"reward": "vader"}, {"reference": "hub/model"}),
        *({"trust_remote_code": 1}, {"tokenizer": "hub/model"}, {"gold_reward": "vader"}, {"policy": "x"}),
    ],
)
def test_arguments_that_have_flags_of_their_own(env_args: dict[str, Any]) -> None:
    """Names of files, models and functions are not set by --env-args, nor is trust."""
    with pytest.raises(
        FlagError, match=f"--env-args {next(iter(env_args))}: textenv/Sentiment-v0 takes max_new_tokens"
    ):
        EnvFlags(env="textenv/Sentiment-v0", env_args=env_args).make_env()


@pytest.mark.parametrize(
    "name", ["hostile:hostile/Task-v0", "hostile:textenv/Toy-v0", "hostile/Task-v0", "CartPole-v1"]
)
def test_environments_of_others(toy: Path, marker: Path, name: str) -> None:
    """An environment that is not textenv's is refused; named on the command line it is made."""
    change(toy, env=name, env_args={})
    refused(toy, rf"config.json names '{name}', which would import and run code.*--env")
    assert not marker.exists()
    if name == "hostile:hostile/Task-v0":
        sample(SampleConfig(toy, env=name, num=1))
        assert marker.exists()
    with pytest.raises(FlagError, match="does not fit the environment: .* got 3 and 6 tokens"):
        sample(SampleConfig(toy, env="textenv/Toy-v0", num=1))  # the given one replaces the folder's


@pytest.mark.parametrize("flag", ["reward", "gold_reward"])
def test_rewards_of_others(text: Path, marker: Path, flag: str) -> None:
    """module:function is refused; named on the command line, it or another reward, it is used."""
    commands(text)
    named: Any = ["vader", "hostile:reward"] if flag == "reward" else "hostile:reward"
    change(text, **{flag: named})
    option = f"--{flag.replace('_', '-')}"
    refused(text, f"config.json names 'hostile:reward', which would import and run code.*{option}")
    commands(text, **{flag: ["vader"] if flag == "reward" else "vader"})
    assert not marker.exists()
    commands(text, **{flag: named})
    assert marker.exists()


def test_trust_is_never_read_from_a_folder(
    text: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of the checkpoint, and of the model and classifier that the folder names; with the flag it is run."""
    change(text, trust_remote_code=True)
    config = tmp_path / "model" / "config.json"
    original = config.read_text()
    (tmp_path / "model" / "own.py").write_text(CODE)
    config.write_text(json.dumps(json.loads(original) | {"model_type": "own", "auto_map": OWN}))
    refused(text, "--trust-remote-code")
    assert not marker.exists()
    sample(SampleConfig(text, num=1, trust_remote_code=True))
    assert marker.exists()
    marker.unlink()
    monkeypatch.delitem(sys.modules, "hostile")
    config.write_text(original)
    judge = tmp_path / "judge"
    change(text, gold_reward=str(judge))
    commands(text)  # a classifier that brings no code needs no repetition
    settings = json.loads((judge / "config.json").read_text())
    (judge / "own.py").write_text(CODE)
    (judge / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": OWN}))
    refused(text, "--trust-remote-code")
    assert not marker.exists()
    with pytest.raises(FlagError, match="--reward"):  # no classifier, but its code has run
        evaluate(EvaluateConfig(text, trust_remote_code=True))
    assert marker.exists()


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"model_type": "own", "auto_map": OWN}, "--trust-remote-code"),
        ("config.json", {"quantization_config": {"quant_method": "quark"}}, "import a quantization library"),
        ("config.json", {"attn_implementation": "hostile/kernel"}, "download and run a kernel"),
        ("policy.json", {"dtype": "load"}, "dtype must be one of float32, bfloat16"),
        ("adapter_config.json", {"base_model_name_or_path": "hostile/model"}, "holds an adapter"),
        ("pytorch_model.bin", {}, "is a pickle"),
    ],
)
def test_hostile_checkpoints(toy: Path, marker: Path, file: str, settings: dict[str, Any], message: str) -> None:
    """A checkpoint whose checksums are right and whose files name code, kernels or pickles."""
    folder = toy / "checkpoint"
    (folder / "own.py").write_text(CODE)
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").rename(folder / file)
    else:
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        content = {name: value for name, value in (content | settings).items() if name != "checksum"}
        write_json(folder / file, content) if file == "policy.json" else (folder / file).write_text(json.dumps(content))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    manifest = read_json(folder / "manifest.json")
    manifest["files"] = {name: describe(folder / name) for name in names if name != "manifest.json"}
    write_json(folder / "manifest.json", manifest)
    for command in (EvaluateConfig(toy), SampleConfig(toy)):
        with pytest.raises((FlagError, DamagedFile), match=message):
            command.load()
    assert not marker.exists()
    if "auto_map" in settings:
        EvaluateConfig(toy, trust_remote_code=True).load()
        assert marker.exists()


@pytest.mark.parametrize(
    "flags",
    [
        *({"agent": "os"}, {"sampler": "__import__"}, {"dtype": "load"}, {"ppo": {"os": 1}}, {"os": "system"}),
        *({"attn_implementation": 3}, {"reward": "hostile:run"}, {"env": ["hostile:run"]}, {"env": None}),
    ],
)
def test_names_that_become_attributes(toy: Path, marker: Path, flags: dict[str, Any]) -> None:
    """Names and types that no flag has are refused with the file's name."""
    change(toy, **flags)
    refused(toy, "config.json")
    assert not marker.exists()


def test_control_characters_are_shown(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of prompts and completions, in both commands and in the errors of the command line."""
    (tmp_path / "prompts.txt").write_text("a \x1b]0;title\x07 b\n")
    commands(text)
    printed = capsys.readouterr().out
    assert r"a \x1b]0;title\x07 b -> " in printed and not set(printed) & set("\x1b\x07\x9b")
    change(text, env="\x1b[31m\x07:evil\u202e")
    monkeypatch.setattr("sys.argv", ["experiments", "sample", "--run", str(text)])
    with pytest.raises(SystemExit) as exit:
        main()
    shown = capsys.readouterr().err
    assert exit.value.code == 2 and r"\x1b[31m\x07:evil\u202e" in shown and not set(shown) & set("\x1b\x07\u202e")


def test_many_completions_are_sampled_in_batches(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as --num are printed, each batch before the next is sampled; a seed gives the same ones."""
    sizes: list[int] = []
    original = sys.modules["experiments.saved_run"].sample_completions

    def counted(env: Any, policy: Any, prompts: list[Any], generator: Any) -> Any:
        assert len(capsys.readouterr().out.splitlines()) == (sizes[-1] if sizes else 0)
        sizes.append(len(prompts))
        return original(env, policy, prompts, generator)

    monkeypatch.setattr("experiments.saved_run.sample_completions", counted)
    sample(SampleConfig(toy, num=150, seed=3))
    assert sizes == [64, 64, 22]
    monkeypatch.undo()
    outputs = []
    for seed in (3, 3, 4):
        capsys.readouterr()
        sample(SampleConfig(toy, num=150, seed=seed))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2] and len(outputs[0].splitlines()) == 150
    lines = outputs[0].splitlines()
    assert lines[:64] != lines[64:128]  # the generator goes on


def test_text_flags_reach_the_task(tmp_path: Path) -> None:
    """--special-tokens-in-prompts is the task's argument; other tasks refuse it."""
    with pytest.raises(FlagError, match="--special-tokens-in-prompts is for --env textenv/Text-v0"):
        tiny(special_tokens_in_prompts=True).make_env()
    model = model_folder(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a [END] b\n")
    flags: dict[str, Any] = {"env": "textenv/Text-v0", "model": str(model), "prompts": str(tmp_path / "prompts.txt")}
    flags |= {"reward": ["vader"], "max_new_tokens": 3}
    env = EnvFlags(**flags, special_tokens_in_prompts=True).make_env()
    assert env.unwrapped.mdp.prompts.input_ids.tolist() == [[1, 0, 2]]
    with pytest.raises(FlagError, match="even in ordinary text"):  # this vocabulary has no other token for it
        EnvFlags(**flags).make_env()

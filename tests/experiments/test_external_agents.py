"""Agents from outside the package: `module:Class` in `train` and `compare`, as experiments/README.md has it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agents import REINFORCE, Agent
from agents.files import read_json
from experiments.agent_classes import AGENTS, SET_BY_AGENTS, complete_settings, find_agent, settings_of, short_name
from experiments.changes import changes_that_mix
from experiments.command_line import read_arguments, train
from experiments.compare import CompareConfig
from experiments.errors import FlagError
from experiments.fingerprints import sources
from experiments.run_folder import read_config, write_config
from experiments.saved_run import EvaluateConfig, evaluate
from tests.helpers.commands import TRIAL, tiny
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy

HEADER = """
from dataclasses import dataclass
from typing import Any, Callable, Literal
from agents import Agent, PPO, REINFORCE
"""
FINE = """
@dataclass(eq=False)
class Mine(REINFORCE):
    '''Mine.'''

    bonus: float = 0.5
    '''A bonus.'''
    kind: Literal["a", "b"] | None = None
    count: "int | Callable[[], int]" = 3

@dataclass(eq=False)
class Resolves(Mine):
    keep: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self.keep = self.num_generations if self.keep is None else self.keep

class Plain(REINFORCE):
    '''No setting of its own: needs no dataclass.'''
"""
WRONG = """
class No: ...
class Abstract(Agent): ...

class Undecorated(REINFORCE):
    bonus: float = 0.5

@dataclass(eq=False)
class Hides(REINFORCE):
    step: int = 3

@dataclass(eq=False)
class HidesMethod(REINFORCE):
    weights: float = 1.0

@dataclass(eq=False)
class HidesVariable(PPO):
    needs_values: bool = False

@dataclass(eq=False)
class Overwritten(REINFORCE):
    kl_coef: float = 0.3

@dataclass(eq=False, kw_only=True)
class Required(REINFORCE):
    bonus: float

@dataclass(eq=False)
class Odd(REINFORCE):
    bonus: list = None

class ppo(REINFORCE): ...
class Seeds(REINFORCE): ...
class PPO(REINFORCE): ...
number = 3
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, with the modules `own_agents`, `other_agents` and `broken_agents`."""
    (tmp_path / "own_agents.py").write_text(HEADER + FINE + WRONG)
    (tmp_path / "other_agents.py").write_text(HEADER + FINE)
    (tmp_path / "broken_agents.py").write_text("import no_such_package")
    (tmp_path / "unreadable_agents.py").write_text("class")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_agents", "other_agents", "broken_agents"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    settings_of.cache_clear()
    return tmp_path


def example(word: str) -> str:
    """The Python code of experiments/README.md that has a word."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if word in code]
    return str(code)


def test_the_examples_appear_in_the_table_of_compare(tmp_path: Path) -> None:
    """An agent, with its flags and its normalized objective, on a task with a reward and a shaping term.

    Their modules are in the working directory, and workers import them.
    """
    (tmp_path / "best_of_group.py").write_text(agent := example("class BestOfGroup"))
    (tmp_path / "own_task.py").write_text(example("def polite("))
    assert 15 <= len(agent.splitlines()) <= 35
    flags = ["--agents", "best_of_group:BestOfGroup", "--BestOfGroup.keep", "3", "--env", "own_task:own/Polite-v0"]
    flags += ["--seeds", "0", "1", "--env-args", "max_new_tokens", "2", "--kl-coef", "0.2"]
    flags += ["--total-timesteps", "200", "--n-episodes", "16", "--num-evals", "1", "--num-workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "compare", *flags, "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in (tmp_path / "run" / "report.txt").read_text().splitlines() if "BestOfGroup" in line)
    summary = read_json(tmp_path / "run" / "summary.json")["agents"]["BestOfGroup"]
    assert f"{summary['normalized_objective']['value']:.1%}" in row
    trial = tmp_path / "run" / "BestOfGroup" / "seed-1"
    saved = json.loads((trial / "config.json").read_text())
    assert saved["flags"]["BestOfGroup"]["keep"] == 3 and saved["flags"]["agent"] == "best_of_group:BestOfGroup"
    assert json.loads((trial / "checkpoint" / "agent.json").read_text())["settings"]["keep"] == 3


def test_its_flags_are_its_fields(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own and those that it inherits, with docstrings; the part of a union that no flag can hold is left out."""
    config = read_arguments(["train", "--agent", "own_agents:Mine", "--Mine.bonus", "2", "--Mine.kind", "b"])
    assert (
        config.settings["Mine"] == complete_settings({"Mine": {"bonus": 2.0, "kind": "b"}}, ["own_agents:Mine"])["Mine"]
    )
    assert config.hyperparameters()["count"] == 3 and config.hyperparameters()["credit"] == "reward_to_go"
    with pytest.raises(SystemExit):
        read_arguments(["train", "--agent", "own_agents:Mine", "-H"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--Mine.bonus FLOAT A bonus. (default: 0.5)" in shown and "--Mine.count INT" in shown
    assert "--ppo." not in shown and "--Mine.learning-rate" not in shown
    compared = read_arguments(
        ["compare", "--agents", "ppo", "own_agents:Mine", "other_agents:Plain", "--Mine.bonus", "1"]
    )
    assert [trial.settings.keys() for trial in compared.trials()[:3]] == [{"ppo"}, {"Mine"}, {"Plain"}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own", "must be one of reinforce, .*, or module:Class of an agent of your own, got 'own'"),
        ("no_such_module:Mine", "could not be imported: No module named 'no_such_module'"),
        ("broken_agents:Mine", "could not be imported: No module named 'no_such_package'"),
        ("unreadable_agents:Mine", "could not be imported: SyntaxError in unreadable_agents: invalid syntax"),
        ("own_agents:Missing", "could not be imported: .* has no attribute 'Missing'"),
        (":Mine", "must be module:object"),
        ("own_agents:", "must be module:object"),
        ("./own_agents.py:Mine", "must be module:object"),
        ("own_agents:No", "must be a subclass of agents.Agent, got <class 'own_agents.No'>"),
        ("own_agents:number", "must be a subclass of agents.Agent, got 3"),
        ("own_agents:Abstract", "must be an agent that can be made, but it lacks losses, train"),
        ("own_agents:Undecorated", r"must be a dataclass, .* write @dataclass\(eq=False\)"),
        ("own_agents:Hides", "must be a class without a field 'step': Agent.step exists"),
        ("own_agents:HidesMethod", "must be a class without a field 'weights': REINFORCE.weights exists"),
        ("own_agents:HidesVariable", "must be a class without a field 'needs_values': .*needs_values exists"),
        ("own_agents:Overwritten", "must be a class without a field 'kl_coef': `Agent` sets it itself"),
        ("own_agents:Required", "must be a class whose fields have defaults; 'bonus' has none"),
        ("own_agents:Odd", "must be a class whose fields are numbers, texts.* got bonus: <class 'list'>"),
        ("own_agents:ppo", "must have a name of its own, got ppo, which is that of another agent"),
        ("own_agents:PPO", "must have a name of its own, got PPO, which is that of another agent"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_starts(modules: Path, name: str, message: str) -> None:
    """In both commands, with the name and what to do."""
    for arguments in (["train", "--agent", name], ["compare", "--agents", "ppo", name]):
        with pytest.raises(FlagError, match=message) as error:
            read_arguments([*arguments, "--out", str(modules / "run")])
        assert str(error.value).startswith("--agent") and "\n" not in str(error.value)
    assert not (modules / "run").exists()


def test_names_that_clash_with_each_other_or_with_a_flag(modules: Path) -> None:
    """Tables, folders and flags would be the same. Control: other names are accepted together."""
    with pytest.raises(FlagError, match="'other_agents:Mine': the class must have a name of its own"):
        CompareConfig(agents=["own_agents:Mine", "other_agents:Mine"])
    with pytest.raises(FlagError, match="got Seeds, which is that of another agent or of a flag"):
        CompareConfig(agents=["own_agents:Seeds"])
    CompareConfig(agents=["own_agents:Mine", "other_agents:Plain"])


def test_the_names_that_agents_set_themselves_are_all_refused() -> None:
    """No attribute of one of our agents is missing among those that a field must not have."""
    env, found = tiny().make_env(), set()
    for name in filter(lambda name: issubclass(find_agent(name), Agent), AGENTS):
        agent = tiny(agent=name).make_agent(random_policy(env).float(), env)
        found |= vars(agent).keys() - {f.name for f in dataclasses.fields(agent)}
    assert found == SET_BY_AGENTS


def test_an_agent_may_resolve_a_default(modules: Path) -> None:
    """A field that is None by default and has a value once the agent is made; one that is given is kept."""
    for keep, value in ((None, 4), (2, 2)):
        config = tiny(agent="own_agents:Resolves", settings={"Resolves": {"keep": keep}})
        agent = config.make_agent(random_policy(env := config.make_env()).float(), env)
        assert getattr(agent, "keep") == value  # noqa: B009


def test_a_setting_of_an_agent_that_is_not_asked_for_is_refused() -> None:
    """In a sentence that names it and the agents that are asked for."""
    refused = {
        ("train", "--grpo.num-generations", "2"): "--grpo.num-generations is a setting of grpo, .*asked for: ppo",
        ("train", "--agent", "rloo", "--ppo.gamma=1"): "--ppo.gamma is a setting of ppo, .*asked for: rloo",
        ("compare", "--agents", "ppo", "grpo", "--sb3-ppo.n-steps", "2"): "a setting of sb3-ppo, .*: ppo, grpo",
    }
    for arguments, message in refused.items():
        with pytest.raises(FlagError, match=message):
            read_arguments(arguments)
    for settings in ({"rloo": {}}, {"ppo": {"bonus": 1}}):  # configs that are made in Python
        with pytest.raises(FlagError, match=r"--(rloo\.\* are settings|ppo\.bonus: ppo has no such setting)"):
            tiny(settings=settings)
    assert read_arguments(["compare", "--agents", "ppo", "grpo", "--grpo.num-generations", "2"]).settings["grpo"]


def test_a_run_folder_imports_no_agent(modules: Path) -> None:
    """`evaluate` reads what an agent of the user's has trained, and never imports the class that the folder names."""
    config = tiny(agent="own_agents:Mine", out=modules / "run", **{"total_timesteps": TRIAL["total_timesteps"]})
    train(config)
    del sys.modules["own_agents"]
    (modules / "own_agents.py").write_text(f"open({str(modules / 'ran')!r}, 'w')\n" + HEADER + FINE)
    assert read_config(modules / "run").total_timesteps == TRIAL["total_timesteps"]
    evaluate(EvaluateConfig(modules / "run"))
    assert not (modules / "ran").exists() and "own_agents" not in sys.modules
    settings_of.cache_clear()
    find_agent("own_agents:Mine")  # control: whoever imports it is seen
    assert (modules / "ran").exists()


def test_a_changed_agent_is_seen_when_a_run_is_resumed(modules: Path) -> None:
    """Its name and the source of its module are compared; what is imported is what the command line names."""
    config = tiny(agent="own_agents:Mine")
    write_config(config, modules)
    saved = read_json(modules / "config.json")
    assert changes_that_mix(config, saved) == []
    assert "agent own_agents:Mine" in sources(config)
    other = changes_that_mix(tiny(agent="reinforce"), saved)
    assert "agent was 'own_agents:Mine' and is 'reinforce'." in other
    path = modules / "own_agents.py"
    path.write_text(path.read_text() + "# changed\n")
    assert changes_that_mix(config, saved) == ["agent own_agents:Mine has changed."]


def test_a_new_agent_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In `AGENTS`: both commands then know it, with its flags."""
    with pytest.raises(FlagError, match="got 'mine'"):  # control
        find_agent("mine")
    monkeypatch.setitem(AGENTS, "mine", "agents.reinforce:REINFORCE")
    settings_of.cache_clear()
    config = read_arguments(["train", "--agent", "mine", "--mine.num-generations", "2"])
    assert find_agent("mine") is REINFORCE and config.settings["mine"]["num_generations"] == 2
    assert short_name("mine") == "mine"
    with pytest.raises(SystemExit):
        read_arguments(["compare", "--agents", "mine", "-h"])
    assert "--mine.num-generations" in capsys.readouterr().out

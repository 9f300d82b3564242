"""What changed since a run began is named: what its flags name, and what it runs on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import fingerprints
from experiments.changes import changes_of_surroundings, changes_that_mix
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.fingerprints import sources
from experiments.opening import opened
from experiments.reward_model import RewardModelConfig
from experiments.run_folder import read_saved_config, write_config
from tests.helpers.commands import tiny

REWARD = "def words(prompts, completions, completion_ids, **columns):\n    return [0.0] * len(prompts)\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """Flags that name files of every kind, by paths that are relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("prompts.txt").write_text("a\nb\n", encoding="utf-8")
    for name in ("model", "classifier", "gold"):
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}", encoding="utf-8")
        Path(name, "model.safetensors").write_bytes(b"weights")
    Path("base").mkdir()
    Path("base", "model.safetensors").write_bytes(b"base")
    Path("model", "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}), encoding="utf-8")
    Path("my_reward.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    rewards = ["vader", "my_reward:words", "classifier#good"]
    return TrialConfig(
        env="textenv/Text-v0", model="model", prompts="prompts.txt", reward=rewards, gold_reward="gold", out=Path("run")
    )


def saved(config: TrialConfig) -> dict[str, Any]:
    """`config.json` of a run that begins now."""
    Path("saved").mkdir(exist_ok=True)
    write_config(config, Path("saved"))
    return read_saved_config(Path("saved"))


def append(name: str) -> Callable[[], Any]:
    """Changes a file."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (append("prompts.txt"), "prompts prompts.txt has changed."),
        (append("model/model.safetensors"), "model model/model.safetensors has changed."),
        (append("base/model.safetensors"), "model base/model.safetensors has changed."),
        (lambda: Path("model/model.safetensors").unlink(), "model model/model.safetensors is gone."),
        (lambda: Path("model/new.json").touch(), "model model/new.json is new."),
        (append("my_reward.py"), "reward my_reward:words has changed."),
        (append("classifier/config.json"), "reward classifier/config.json has changed."),
        (append("gold/model.safetensors"), "gold_reward gold/model.safetensors has changed."),
    ],
)
def test_each_changed_source_is_named(change: Callable[[], Any], sentence: str, config: TrialConfig) -> None:
    """Prompts, model, adapter's base, reward function, classifiers: the one that changed, and no other."""
    before = saved(config)
    assert changes_that_mix(config, before) == []
    change()
    assert changes_that_mix(config, before) == [sentence]


def test_what_is_unknown_has_not_changed(config: TrialConfig) -> None:
    """A model of the hub has a commit once it is in the cache, which it is not when its run begins."""
    before = saved(config)
    name = next(each for each in before["sources"] if each.startswith("model"))
    before["sources"][name] = None
    assert changes_that_mix(config, before) == []
    before["sources"][name] = "another"  # control
    assert changes_that_mix(config, before) == [f"{name} has changed."]


def test_a_change_stops_the_run_unless_accepted(config: TrialConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with the name of the file; with --accept-changes it goes on, after naming it."""
    with opened(config, "x"):
        pass
    append("prompts.txt")()
    again = TrialConfig(**(vars(config) | {"resume": True}))
    with pytest.raises(FlagError, match=r"prompts prompts\.txt has changed\..*would mix two runs"), opened(again, "x"):
        pass
    with opened(TrialConfig(**(vars(again) | {"accept_changes": True})), "x"):
        pass
    assert "prompts prompts.txt has changed." in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["named.py", "defining.py"])
@pytest.mark.parametrize("name", ["function", "instance"])
def test_a_reward_is_its_module_and_its_source(
    name: str, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a function that is imported from elsewhere, and of an instance of a class of elsewhere, both files count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("named", "defining"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    Path("defining.py").write_text(
        "def function(**columns): ...\nclass Kind:\n    def __call__(self, **columns): ...\n", encoding="utf-8"
    )
    Path("named.py").write_text("from defining import Kind, function\ninstance = Kind()\n", encoding="utf-8")
    before = fingerprints._source_of("named", name)
    assert before is not None and fingerprints._source_of("named", name) == before
    append(changed)()
    assert fingerprints._source_of("named", name) != before


def test_an_optimizer_of_the_users_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:object` in the settings of an agent; one that cannot be imported is refused with its flag."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    Path("my_optimizer.py").write_text("from torch.optim import SGD\n", encoding="utf-8")
    config = tiny(settings={"ppo": {"optimizer": "my_optimizer:SGD"}})
    before = saved(config)
    assert changes_that_mix(config, before) == []
    append("my_optimizer.py")()
    assert changes_that_mix(config, before) == ["ppo.optimizer my_optimizer:SGD has changed."]
    with pytest.raises(FlagError, match=r"--ppo\.optimizer 'my_optimizer:missing' could not be imported"):
        sources(tiny(settings={"ppo": {"optimizer": "my_optimizer:missing"}}))
    assert not any("optimizer" in name for name in sources(tiny()))  # control: adam is ours


def test_what_is_built_in_has_no_source() -> None:
    """None, not an error."""
    assert fingerprints._source_of("builtins", "len") is None


def test_models_of_the_hub_have_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in the cache; None where there is none."""
    path = "/cache/models--a--b/snapshots/0123abc/config.json"
    monkeypatch.setattr(fingerprints, "try_to_load_from_cache", lambda name, file: path if name == "a/b" else None)
    assert dict(fingerprints._model("model", "a/b")) == {"model a/b": "0123abc"}
    assert dict(fingerprints._model("model", "a/c")) == {"model a/c": None}


def test_the_registration_of_the_environment_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments, and the source of the function that makes the task."""
    import gymnasium as gym

    config = TrialConfig(env="textenv/Toy-v0")
    before = sources(config)
    assert len(before) == 2 and None not in before.values()
    monkeypatch.setitem(gym.spec("textenv/Toy-v0").kwargs, "vocab_size", 7)
    after = sources(config)
    assert [name for name in before if before[name] != after[name]] == ["env textenv/Toy-v0"]


def test_pairs_are_sources(tmp_path: Path) -> None:
    """Those of `reward-model`, a file or a folder with folders; further files of pairs are too."""
    (tmp_path / "pairs" / "train").mkdir(parents=True)
    (tmp_path / "pairs" / "train" / "data.arrow").write_bytes(b"1")
    config = RewardModelConfig(tmp_path / "pairs", "a/b", tmp_path / "out")
    before = sources(config)
    (tmp_path / "pairs" / "train" / "data.arrow").write_bytes(b"2")
    assert [name for name in before if before[name] != sources(config)[name]] == [
        f"pairs {tmp_path / 'pairs' / 'train' / 'data.arrow'}"
    ]
    (tmp_path / "more.jsonl").write_bytes(b"3")
    more = RewardModelConfig(tmp_path / "pairs", "a/b", tmp_path / "out", eval_pairs=[tmp_path / "more.jsonl"])
    assert sources(more).keys() - sources(config).keys() == {f"eval_pairs {tmp_path / 'more.jsonl'}"}


def test_versions_threads_and_device_are_named(config: TrialConfig) -> None:
    """They do not mix runs; a package that is new or gone is named too."""
    before = saved(config)
    assert changes_of_surroundings(config, before) == []
    versions = before["versions"] | {"torch": "1.0", "gone": "2.0"}
    del versions["numpy"]
    other = before | {"versions": versions, "threads": torch.get_num_threads() + 1, "device": "cuda (T4)"}
    found = changes_of_surroundings(config, other)
    assert [text.split()[0] for text in found] == [
        *("device", "threads", "versions.gone", "versions.numpy", "versions.torch")
    ]
    assert f"threads was {torch.get_num_threads() + 1} and is {torch.get_num_threads()}." in found
    assert changes_that_mix(config, other) == []


def test_flags_of_a_later_version_have_their_default(config: TrialConfig) -> None:
    """A flag that the saved run does not have is the same if it has its default."""
    before = saved(config)
    del before["flags"]["num_evals"]
    assert changes_that_mix(config, before) == []
    changed = TrialConfig(**(vars(config) | {"num_evals": 7}))
    assert changes_that_mix(changed, before) == ["num_evals was 25 and is 7."]


def test_settings_of_the_agents_that_are_trained_are_compared(config: TrialConfig) -> None:
    """Those of others are in the `config.json` of earlier versions; a new setting had its default."""
    before = saved(config)
    assert before["flags"].keys() >= {"ppo"} and "rloo" not in before["flags"]
    before["flags"]["rloo"] = {"num_generations": 17, "no_more": 1}
    del before["flags"]["ppo"]["clip_range"]
    assert changes_that_mix(config, before) == []
    before["flags"]["ppo"]["clip_range"] = 0.5  # control
    assert changes_that_mix(config, before) == ["ppo.clip_range was 0.5 and is 0.2."]


def test_a_moved_model_is_another_flag(config: TrialConfig) -> None:
    """The same weights under another name: the flag is named."""
    before = saved(config)
    shutil.copytree("model", "moved")
    moved = changes_that_mix(TrialConfig(**(vars(config) | {"model": "moved"})), before)
    assert moved[0] == "model was 'model' and is 'moved'."

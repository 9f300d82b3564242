"""Saved files carry a format_version: agents of another format are refused, policies of every earlier one load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import textenv
from agents import FORMAT_VERSION, PPO, TransformerPolicy, check_format
from agents.files import MANIFEST, DamagedFile, write_folder, write_json
from tests.helpers.agents import agent_of, task
from tests.helpers.paths import DATA
from tests.helpers.storage import seal
from textenv.references import CausalLMReference


def check_expected(policy: TransformerPolicy, folder: Path) -> None:
    """The policy computes what the version that saved it computed."""
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    ids = torch.tensor(expected["input_ids"])
    with torch.no_grad():
        found = policy.evaluate_actions(ids, torch.ones_like(ids), len(expected["log_probs"][0]))
    torch.testing.assert_close(found.log_probs, torch.tensor(expected["log_probs"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.values, torch.tensor(expected["values"]), rtol=1e-5, atol=1e-5)


every_earlier_format = pytest.mark.parametrize("version", [1, 2])


@every_earlier_format
def test_a_policy_of_an_earlier_format_loads(version: int) -> None:
    """Temperature and separate critic too."""
    policy = TransformerPolicy.from_pretrained(DATA / f"format_{version}")
    assert policy.temperature == 0.8 and policy.critic is not None
    check_expected(policy, DATA / f"format_{version}")


def test_the_comparison_would_notice_another_policy() -> None:
    """Control: one value of the temperature changes the log-probabilities, and so does another format's policy."""
    policy = TransformerPolicy.from_pretrained(DATA / "format_1", temperature=0.9)
    with pytest.raises(AssertionError):
        check_expected(policy, DATA / "format_1")
    with pytest.raises(AssertionError):
        check_expected(TransformerPolicy.from_pretrained(DATA / "format_1"), DATA / "format_2")


@every_earlier_format
@pytest.mark.parametrize("on_reference", [False, True], ids=["merged", "adapter"])
def test_an_adapter_of_an_earlier_format_loads(version: int, on_reference: bool) -> None:
    """Merged, and as an adapter on the weights that it was trained on."""
    folder, base = DATA / f"format_{version}_adapter", DATA / "format_1_adapter" / "base"
    reference = CausalLMReference(AutoModelForCausalLM.from_pretrained(base)) if on_reference else None
    policy = TransformerPolicy.from_pretrained(folder, reference=reference)
    assert policy.has_adapter == on_reference
    check_expected(policy, folder)


@pytest.mark.parametrize("missing", ["dtype", "separate_critic", "temperature", "vocab_size"])
def test_a_policy_without_the_newer_settings_loads(missing: str, tmp_path: Path) -> None:
    """Before format 1 was complete `policy.json` had fewer settings; each has a default."""
    folder = Path(shutil.copytree(DATA / "format_1", tmp_path / "policy"))
    settings = json.loads((folder / "policy.json").read_text())
    del settings[missing]
    (folder / "policy.json").write_text(json.dumps(settings))
    policy = TransformerPolicy.from_pretrained(folder)
    assert policy.vocab_size == 4 and policy.temperature == (1.0 if missing == "temperature" else 0.8)


@every_earlier_format
def test_an_agent_of_an_earlier_format_is_refused(version: int) -> None:
    """The message names the version that reads it."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=2)
    reader = {1: r"0\.1 \(commit b8391f7\)", 2: r"0\.2 \(commit 13092f1\)"}[version]
    message = rf"agent\.json is in format {version}, which textenv {reader} reads; this is textenv "
    with pytest.raises(ValueError, match=message + textenv.__version__):
        PPO.load(DATA / f"format_{version}", env=env)


def test_a_policy_of_this_format_needs_its_manifest(tmp_path: Path) -> None:
    """Without it nothing shows whether its files are whole; earlier formats had none."""
    TransformerPolicy.from_pretrained(DATA / "format_2").save_pretrained(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(DamagedFile, match=r"manifest\.json must be a JSON object, but cannot be read"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_a_format_that_was_changed_back_does_not_avoid_the_checksums(tmp_path: Path) -> None:
    """A folder with a manifest is checked, whatever format its `policy.json` names."""
    TransformerPolicy.from_pretrained(DATA / "format_2").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(saved | {"format_version": 2, "temperature": 0.5}))
    with pytest.raises(DamagedFile, match=r"policy\.json is damaged"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_what_is_saved_carries_the_format(tmp_path: Path) -> None:
    """`agent.json` and `policy.json`; a later format is refused by policy and agent alike."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=2)
    policy = TransformerPolicy.from_pretrained(DATA / "format_1")
    PPO(policy, env, seed=0).save(tmp_path)
    for name in ("agent.json", "policy.json"):
        content = json.loads((tmp_path / name).read_text())
        assert content["format_version"] == FORMAT_VERSION
        (tmp_path / name).write_text(json.dumps(content | {"format_version": FORMAT_VERSION + 1}))
    for load in (lambda: PPO.load(tmp_path, env=env), lambda: TransformerPolicy.from_pretrained(tmp_path)):
        with pytest.raises(
            ValueError, match=f"is in format {FORMAT_VERSION + 1}, which a later version of textenv reads"
        ):
            load()


@given(st.none() | st.booleans() | st.floats() | st.text() | st.integers(max_value=0))
def test_a_format_that_is_no_format_is_an_error(value: Any) -> None:
    """For any other value in the file the message names file and value."""
    with pytest.raises(ValueError, match=r"somewhere\.json: format_version must be an integer"):
        check_format(Path("somewhere.json"), {"format_version": value})


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"null", b'"x"', b"\xff"])
@pytest.mark.parametrize("name", ["agent.json", "policy.json"])
def test_a_file_that_is_no_json_object_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    """The error names the file, whatever it holds."""
    folder = Path(shutil.copytree(DATA / "format_1", tmp_path / "agent"))
    (folder / name).write_bytes(content)
    load = PPO.load if name == "agent.json" else TransformerPolicy.from_pretrained
    with pytest.raises(ValueError, match=rf"{name} must be a JSON object, "):
        load(folder)


def test_the_agent_of_another_library_is_refused(tmp_path: Path) -> None:
    """Stable-Baselines3's agents save an `agent.json` without a name."""
    saved = {"format_version": FORMAT_VERSION, "settings": {}}
    write_folder(tmp_path / "agent", lambda new: write_json(new / "agent.json", saved))
    with pytest.raises(ValueError, match=r"agent\.json must name its agent: .* not by PPO"):
        PPO.load(tmp_path / "agent")


@given(st.integers(1, FORMAT_VERSION + 5), st.integers(1, FORMAT_VERSION))
def test_formats_are_read_from_the_oldest_to_the_current_one(found: int, oldest: int) -> None:
    """Nothing else is read."""
    if oldest <= found <= FORMAT_VERSION:
        check_format(Path("agent.json"), {"format_version": found}, oldest)
    else:
        with pytest.raises(ValueError, match=f"agent.json is in format {found}, "):
            check_format(Path("agent.json"), {"format_version": found}, oldest)


@pytest.mark.parametrize("name", ["policy.json", "agent.json"])
def test_files_of_this_format_need_their_checksum(name: str, tmp_path: Path) -> None:
    """Without it a changed file could not be told from a whole one."""
    agent_of(PPO).save(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    del content["checksum"]
    (tmp_path / name).write_text(json.dumps(content))
    seal(tmp_path)
    with pytest.raises(DamagedFile, match=f"{name} was changed after it was written"):
        PPO.load(tmp_path, env=task())

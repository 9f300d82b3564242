"""Flags of the environment: invalid ones, rewards, and the penalty for a missing EOS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from experiments.env_flags import EnvFlags, load_reward
from experiments.errors import FlagError
from tests.helpers.classifiers import random_classifier, word_tokenizer
from tests.helpers.commands import TINY, tiny
from tests.helpers.models import model_folder
from textenv.lm import load_tokenizer
from textenv.testing import play


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env": "textenv/Text-v0"}, "needs --model, --prompts and --reward"),
        ({"env": "textenv/Text-v0", "model": "m", "prompts": "nowhere.txt", "reward": ["vader"]}, "nowhere.txt"),
        ({"env": "textenv/Text-v0", "model": "m", "prompts": __file__, "reward": ["vadr"]}, "'vadr'"),
        (
            {"env": "textenv/Text-v0", "model": "m", "prompts": __file__, "reward": ["no.such:fn"]},
            "could not be imported",
        ),
        ({"reward": ["vader"]}, "brings its own"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"env": "CartPole-v1"}, "environment of textenv"),
        ({"env": "textenv/Toi-v0"}, "Did you mean: `Toy`"),
        ({"env_args": {"vocabulary": 3}}, "vocabulary"),
        ({"max_new_tokens": 3}, "--max-new-tokens: .*TajMahal-v0 takes only kl_coef"),
        ({"env": "textenv/Toy-v0", "reward_tries": 2}, "--reward-tries: .*takes only vocab_size"),
        ({"device": "nowhere"}, "nowhere"),
        ({"env": "textenv/Text-v0", "model": "/nowhere", "prompts": __file__, "reward": ["vader"]}, "nowhere"),
    ],
)
def test_bad_flags_are_refused_before_loading(flags: dict[str, object], message: str) -> None:
    """The error names the flag and the value."""
    with pytest.raises(ValueError, match=message):
        EnvFlags(**flags).make_env()  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["unknown", "raise SystemExit", "raise RuntimeError('broken')", "class"])
@pytest.mark.parametrize("env_args", [{}, {"vocab_size": 3}])
def test_a_module_of_environments_that_fails(
    source: str, env_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is one of the flag, and names the module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "own_environments.py").write_text(source)
    message = "--env 'own_environments:own/Task-v0' could not be imported: (Syntax|Name|Runtime|System)E"
    with pytest.raises(FlagError, match=message):
        EnvFlags(env="own_environments:own/Task-v0", env_args=env_args).make_env()


def save_classifier(folder: Path, labels: list[str]) -> str:
    """Saves a tiny sequence classifier with its tokenizer, and returns the folder."""
    model = random_classifier("gpt2", len(labels))
    if len(labels) > 1:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(folder)
    word_tokenizer(eos_token="[END]").save_pretrained(folder)
    return str(folder)


def test_a_classifier_can_be_the_reward(tmp_path: Path) -> None:
    """By its folder, with #LABEL if it has several labels; a bad name is refused before anything runs."""
    one = save_classifier(tmp_path / "one", ["good"])
    two = save_classifier(tmp_path / "two", ["bad", "good"])
    assert np.isfinite(load_reward(one)(["a"], ["b"])).all()
    good, bad = (load_reward(f"{two}#{label}")(["a"], ["b"])[0] for label in ("good", "bad"))
    assert good == pytest.approx(-bad) and good != 0
    with pytest.raises(FlagError, match="has the labels .*pass label= one of them, got None"):
        load_reward(two)
    with pytest.raises(FlagError, match="--reward must be 'vader', module:function, or a sequence classifier.*nowhere"):
        load_reward(str(tmp_path / "nowhere"))


def test_missing_eos_penalty_is_a_shaping_term() -> None:
    """A completion that is cut gets it on its last token, one that ends with EOS does not."""
    shaping = tiny(missing_eos_penalty=2.5).make_env().unwrapped.mdp.shaping
    env = gym.make("textenv/Toy-v0", **TINY, shaping=shaping)
    assert play(env, 0, [1, 1]).terms["missing_eos"].tolist() == [0.0, -2.5]
    assert play(env, 0, [1, 0]).terms["missing_eos"].tolist() == [0.0, 0.0]


def test_arguments_of_the_chat_template(tmp_path: Path) -> None:
    """--chat-template-kwargs is a JSON object; anything else is refused by name."""
    model = model_folder(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is false %} b{% endif %}"
    tokenizer.save_pretrained(model)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "a"}]}\n')
    flags: dict[str, Any] = {"env": "textenv/Text-v0", "model": str(model), "prompts": str(tmp_path / "prompts.jsonl")}
    flags |= {"reward": ["vader"], "max_new_tokens": 3}
    for given, text in ((None, "a"), ('{"enable_thinking": false}', "a b"), ('{"enable_thinking": true}', "a")):
        assert EnvFlags(**flags, chat_template_kwargs=given).make_env().unwrapped.mdp.prompts.texts == [text]
    for bad in ("", "[1]", "{", "enable_thinking", '{"a": 1, "a": 2}', '{"tokenize": true}'):
        with pytest.raises(FlagError, match=r"--chat-template-kwargs must be|tokenize"):
            EnvFlags(**flags, chat_template_kwargs=bad).make_env()
    with pytest.raises(FlagError, match="--chat-template-kwargs is for --env textenv/Text-v0"):
        EnvFlags(chat_template_kwargs="{}").make_env()

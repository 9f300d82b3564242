"""What agents of TRL refuse; none of these needs TRL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents.policy import TransformerPolicy
from experiments.agent_classes import AGENTS, settings_of
from experiments.command_line import train
from experiments.errors import FlagError
from experiments.trl_agents import TRLGRPO, TRLRLOO
from experiments.trl_task import end_tokens, prompt_ids, trl_prompts
from tests.helpers.classifiers import word_tokenizer
from tests.helpers.commands import stories_flags, tiny
from tests.helpers.models import model
from tests.helpers.policies import random_policy
from tests.helpers.tokenizers import byte_level
from tests.helpers.trl_tasks import count_a, word_task
from textenv import WordTokenizer, get_mdp

every_agent = pytest.mark.parametrize("kind", [TRLRLOO, TRLGRPO], ids=lambda kind: kind.__name__)


def appending() -> Any:
    """A tokenizer that appends EOS to a text."""
    from tokenizers import processors

    tokenizer = word_tokenizer(eos_token="[END]")
    template = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 0)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@every_agent
def test_a_toy_is_refused(kind: Any) -> None:
    """Its reference is a table. The sentence has the rule, the value, and what to do."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    message = "needs a task whose reference is a causal language model, got TableReference; train this one with"
    with pytest.raises(ValueError, match=message):
        kind(random_policy(env).float(), env)


@pytest.mark.parametrize(
    ("changes", "policy", "message"),
    [
        ({"tokenizer": WordTokenizer(list("abcdefgh"))}, {}, "needs a Hugging Face tokenizer, got WordTokenizer"),
        ({}, {"temperature": 0.5}, "needs a policy with temperature 1 and without an adapter, got temperature 0.5"),
        ({"reference": model("llama", vocab_size=12).float()}, {}, "as the tokenizer has tokens, 9, got 12"),
        ({"eos_token_id": [0, 3]}, {}, r"must be those of the task, \[0, 3\], got \[0\]"),
        ({"tokenizer": appending()}, {}, r"must read each prompt as the task's tokens, \[1\] for 'a', got \[1, 0\]"),
    ],
)
def test_a_task_that_trl_reads_in_another_way_is_refused(
    changes: dict[str, Any], policy: dict[str, Any], message: str
) -> None:
    """Before anything is trained. Control: without the change only TRL itself may be missing."""
    env = word_task(**changes)
    with pytest.raises(ValueError, match=message):
        TRLRLOO(TransformerPolicy.for_env(env, **policy), env)
    env = word_task()
    try:
        TRLRLOO(TransformerPolicy.for_env(env), env)
    except ImportError:
        assert importlib.util.find_spec("trl") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "num_generations must be in"),
        ({"n_episodes": 9}, "n_episodes must be a multiple of num_generations, got 9 and 2"),
        ({"n_episodes": 8, "micro_batch_size": 3}, "n_episodes must be a multiple of micro_batch_size, got 8 and 3"),
        ({"kl_coef": -0.1}, "kl_coef must be in"),
        ({"lr_schedule": "none"}, "lr_schedule must be one of linear, constant, cosine"),
        ({"seed": 2**32}, "seed must be in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    """By name."""
    env = word_task()
    policy = TransformerPolicy.for_env(env)
    with pytest.raises(ValueError, match=message):
        TRLRLOO(policy, env, **settings)


def test_a_loss_that_needs_another_weight_is_refused() -> None:
    """TRL would refuse it after the baselines were measured."""
    env = word_task()
    with pytest.raises(ValueError, match="importance must be 'sequence' with loss_type='luspo', got 'token'"):
        TRLGRPO(TransformerPolicy.for_env(env), env, loss_type="luspo")


@pytest.mark.parametrize("prompts", [["a", "b a b"], [[{"role": "user", "content": "hello"}]]])
def test_prompts_are_texts_or_messages(prompts: list[Any]) -> None:
    """And have the task's token ids, BOS included."""
    mdp = get_mdp(
        gym.make("textenv/Text-v0", tokenizer=byte_level(), prompts=prompts, reward=count_a, max_new_tokens=2)
    )
    assert trl_prompts(mdp) == prompts
    rows = zip(mdp.prompts.input_ids, mdp.prompts.attention_mask, strict=True)
    expected = [ids[mask > 0].tolist() for ids, mask in rows]
    assert prompt_ids(mdp.tokenizer, prompts, {}) == expected
    assert all(ids[0] == mdp.tokenizer.bos_token_id for ids in expected)


def test_end_tokens_are_those_of_tokenizer_and_model() -> None:
    """As TRL has it."""
    own = model("gpt2")
    assert end_tokens(own, word_tokenizer(eos_token="b")) == {0, 2}
    own.generation_config.eos_token_id = [3, 4]
    assert end_tokens(own, word_tokenizer(eos_token="b")) == {2, 3, 4}
    own.generation_config.eos_token_id = None
    assert end_tokens(own, word_tokenizer(eos_token="b")) == {2}


def test_without_trl_a_sentence_says_what_to_install(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained; listing the agents and their settings does not need it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    config = tiny(**stories_flags(assets, tmp_path), agent="trl-grpo", out=tmp_path / "run")
    with pytest.raises(FlagError, match=r'TRL\'s GRPO needs TRL: pip install -e "\.\[trl\]"'):
        train(config)


@pytest.mark.slow
def test_help_does_not_import_trl() -> None:
    """It takes seconds, and may not be installed. The help has the settings."""
    assert {"trl-rloo", "trl-grpo"} < set(AGENTS)
    assert settings_of("trl-grpo")().loss_type == "dapo"
    program = """
import sys
from experiments.command_line import read_arguments
try:
    read_arguments(["train", "--agent", "trl-rloo", "--help"])
finally:
    print("imported" if "trl" in sys.modules else "not imported", file=sys.stderr)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.returncode == 0 and "--trl-rloo.num-generations" in shown.stdout
    assert shown.stderr.splitlines()[-1] == "not imported"


@pytest.mark.parametrize(("flag", "value"), [("lora_rank", 2), ("compile", True), ("dtype", "bfloat16")])
def test_flags_of_our_agents_are_refused(flag: str, value: Any) -> None:
    """As by all agents of other libraries."""
    with pytest.raises(FlagError, match=rf"--{flag.replace('_', '-')}.* is for our agents, not for trl-rloo"):
        tiny(agent="trl-rloo", **{flag: value})

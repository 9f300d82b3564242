"""Small language models of many families, tasks and policies with them, and a frequency test for samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from agents.policy import TransformerPolicy
from agents.sampling import GraphSampler, Sampler, collect, new_generator
from agents.sampling.loop import MIN_FINISHED_ROWS
from tests.helpers.classifiers import word_tokenizer
from tests.helpers.policies import random_policy
from tests.helpers.tasks import letter_values, make, random_reference, stories, words
from textenv import exact, get_mdp
from textenv.data import WordTokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
}


CONFIGS: dict[str, Any] = {
    "gpt2": lambda **s: GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, resid_pdrop=0.3, **s),
    "llama": lambda **s: LlamaConfig(**SMALL, attention_dropout=0.3, **s),
    "smollm": lambda **s: LlamaConfig(**SMALL, tie_word_embeddings=True, rope_theta=100_000.0, **s),
    "qwen2": lambda **s: Qwen2Config(**SMALL, tie_word_embeddings=True, **s),
    "qwen3": lambda **s: Qwen3Config(**SMALL, head_dim=8, **s),
}


PADDED = 9  # the models have three logits more than the tokenizer has tokens


def model(kind: str, **settings: Any) -> Any:
    """A random model in float64, far from uniform, with dropout where its config has it."""
    torch.manual_seed(0)
    config = CONFIGS[kind](
        **{"vocab_size": PADDED, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.5} | settings
    )
    return AutoModelForCausalLM.from_config(config).double()


def arguments(kind: str, special: str = "pad is eos", **changes: Any) -> dict[str, Any]:
    """Arguments of Text-v0 with prompts of different lengths, so that there is padding on both sides."""
    reference = changes.pop("reference", None) or model(kind)
    return {
        "tokenizer": tokenizer(special),
        "prompts": ["a", "b a b", "c c"],
        "reward": letter_values,
        "reference": reference,
        "max_new_tokens": 5,
        "kl_coef": 0.3,
    } | changes


def task(kind: str, special: str = "pad is eos", **changes: Any) -> Any:
    """Text-v0 with a small random language model."""
    return gym.make("textenv/Text-v0", **arguments(kind, special, **changes))


def drifted(env: Any, **settings: Any) -> TransformerPolicy:
    """A policy at some distance from the reference, with a non-zero value head."""
    policy = TransformerPolicy.for_env(env, **settings).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy


CLOSE = 1e-5


def language_model(
    vocabulary: int = 300, ends: int = 30, max_new_tokens: int = 12, positions: int = 20, reference: Any = None
) -> tuple[Any, TransformerPolicy]:
    """A task and a policy with a random GPT-2 in single precision, or another model as reference.

    The first `ends` tokens are EOS tokens. Prompts differ in length.
    """
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=positions, pad_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    names = [f"w{i}" for i in range(1, vocabulary)]
    env = gym.make(
        "textenv/Text-v0",
        tokenizer=WordTokenizer(names),
        prompts=["w31 w32 w33", "w40", "w50 w51"],
        reference=reference or model,
        reward=lambda prompts, completions, **_: [float(len(completion)) for completion in completions],
        max_new_tokens=max_new_tokens,
        eos_token_id=list(range(ends)),
    )
    policy = TransformerPolicy.for_env(env, temperature=0.7)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return env, policy


def check_frequencies(sampler: Sampler, kind: str) -> None:
    """A chi-square test of a sampler against the exact probability of every completion of a toy."""
    env, policy = sampling_task(kind)
    known = exact.evaluate(env, policy)
    state, action = known.tree.leaves()
    number = {(int(s), int(a)): i for i, (s, a) in enumerate(zip(state, action, strict=True))}
    first = known.tree.levels[0]
    expected = np.exp(known.tree.completion_log_probs(known.log_probs)) / (first.stop - first.start)
    observed, draws = np.zeros(len(expected)), 6000
    rollout = collect(env, policy, draws, generator=new_generator("cpu", 1), sampler=sampler, values=False)
    prompts = env.unwrapped.prompts
    for row in range(draws):
        *prefix, last = rollout.tokens[row][rollout.mask[row]].tolist()
        observed[number[known.tree.state_index(prompts[int(rollout.prompt[row])], prefix), last]] += 1
    often = draws * expected >= 5
    if isinstance(sampler, GraphSampler):
        assert (sampler.captured is not None and sampler.captured.mdp is get_mdp(env)) == (kind != "masked")
    counts, means = (np.append(x[often], x[~often].sum()) for x in (observed, draws * expected))
    kept = means > 0
    statistic = ((counts - means)[kept] ** 2 / means[kept]).sum()
    assert counts[~kept].sum() == 0
    assert chi2.sf(statistic, kept.sum() - 1) > 1e-3


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


def half_stories(assets: Path, device: str, **arguments: Any) -> tuple[Any, TransformerPolicy]:
    """A real language model as reference and policy, both in bfloat16."""
    env = make(stories(assets, max_new_tokens=16) | arguments)
    reference: Any = get_mdp(env).reference
    reference.model.to(device, HALF)
    return env, TransformerPolicy.for_env(env).to(device)


MEAN, WORST = 0.02, 0.3  # nats of a token's log-probability; three seeds on a CPU gave 0.015 and 0.21
ROWS = MIN_FINISHED_ROWS - 1  # too few for the loop to drop finished rows, so both samplers use the same random numbers


def tokenizer(special: str = "pad is eos") -> Any:
    """A tokenizer with one token per word."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL[special])


HALF = torch.bfloat16


# Special tokens of real tokenizers: pad == eos (GPT-2), no pad (Llama), a pad token of its own (Qwen).
SPECIAL: dict[str, dict[str, str]] = {
    "pad is eos": {"eos_token": "<e>", "pad_token": "<e>"},
    "no pad": {"eos_token": "<e>"},
    "pad": {"eos_token": "<e>", "pad_token": "<p>"},
}


WORDS = ["<e>", "<p>", "<stop>", "a", "b", "c"]


def sampling_task(kind: str) -> tuple[Any, TransformerPolicy]:
    """A toy whose reference is a table, sparse or not, or a language model, and a policy far from it."""
    reference: Any = random_reference(4, 3, sparse=kind == "masked")
    if kind == "model":
        config = GPT2Config(vocab_size=4, n_embd=16, n_layer=1, n_head=2, n_positions=7, bos_token_id=0, eos_token_id=0)
        reference = GPT2LMHeadModel(config).eval()
    env = make(words(4, prompts=["a b", "b", "c a b"], reference=reference, max_new_tokens=4))
    return env, random_policy(env, scale=0.3, temperature=1.5)


def model_folder(folder: Path) -> Path:
    """A small language model with the tokenizer of words."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer(eos_token="[END]").save_pretrained(folder)
    return folder

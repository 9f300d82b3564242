"""Samples of completions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers.tasks import make, sparse, stories, words
from textenv import get_mdp
from textenv.wrappers import CompletionAction, CompletionSpace


def test_the_initial_completion_space_is_that_of_all_prompts() -> None:
    """A completion that `sample` draws before an episode is allowed after each of them."""
    mdp = get_mdp(sparse())
    space = CompletionSpace(mdp)
    assert space.initial.prompt.tolist() == list(range(len(mdp.prompts.texts)))
    assert space.initial.prompt_text.tolist() == mdp.prompts.texts
    assert (space.initial.input_ids == mdp.initial_input_ids).all() and not space.initial.time.any()


def test_a_sample_that_grows_when_it_is_encoded_is_shortened() -> None:
    """Characters are removed at its end until it fits."""
    mdp = get_mdp(make(words(4, max_new_tokens=3)))
    space = CompletionSpace(mdp)
    space.seed(0)
    encode = mdp.encode_completion
    mdp.encode_completion = lambda text: encode("a " * 4 if len(text) > 2 else text)
    assert max(len(space.sample()) for _ in range(10)) == 2  # one character at a time
    drawn = CompletionSpace(get_mdp(make(words(4, max_new_tokens=3))))
    drawn.seed(0)
    assert any(len(drawn.sample()) > 2 for _ in range(10))  # control


def test_sampled_completions_of_a_real_tokenizer_are_accepted(assets: Path) -> None:
    """Random tokens may become more when decoded and encoded again; a sample nevertheless fits the limit."""
    env = CompletionAction(make(stories(assets, max_new_tokens=6)))
    mdp = env.text_env.mdp
    rng = np.random.default_rng(0)
    encoded_again = [mdp.encode_completion(mdp.decode(rng.integers(3, mdp.vocab_size, 6))) for _ in range(50)]
    assert any(len(tokens) > 6 for tokens in encoded_again)  # control
    env.action_space.seed(0)
    lengths = set()
    for seed in range(50):
        env.reset(seed=seed)
        _, _, terminated, _, info = env.step(env.action_space.sample())
        assert terminated
        lengths.add(len(info["token_ids"]))
    assert 6 in lengths

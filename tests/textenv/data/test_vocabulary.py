"""Tokenizers whose ids have holes: V holds every id that can be seen or sampled, and a hole has no text."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from agents.sampling import collect, new_generator
from tests.helpers.models import drifted, model
from tests.helpers.tasks import zero
from textenv.data import WordTokenizer, fill_holes, load_prompts

VOCABULARIES = {
    "two far ids": {"<e>": 0, "a": 1, "b": 2, "c": 9},
    "the end token last": {"a": 3, "b": 5, "<e>": 11},
    "nothing at zero": {"<e>": 1, "a": 2, "b": 3},
    "two spellings of one id": {"<e>": 0, "a": 1, "A": 1, "b": 3},
}


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, which decodes an id without a token as the word b."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        super().__init__(eos_token="<e>")

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return next((token for token, i in self.ids.items() if i == index), "b")


def fast(ids: dict[str, int]) -> Any:
    """A tokenizer with these words."""
    inner = Tokenizer(models.WordLevel(ids, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>")


@pytest.mark.parametrize(
    ("make", "name"),
    # a fast tokenizer keeps one spelling of an id
    [(make, name) for make in (fast, Slow) for name in VOCABULARIES if make is Slow or "spellings" not in name],
)
def test_every_id_is_an_action_and_a_hole_has_no_text(make: Any, name: str) -> None:
    """With a language model as reference: observations are in their space, completions are those of their tokens."""
    ids = VOCABULARIES[name]
    size, known = max(ids.values()) + 1, set(ids.values())
    holes = sorted(set(range(size)) - known)
    tokenizer = make(ids)
    assert len(tokenizer) != size or holes  # control: its length alone does not say V, or some ids have no token
    assert make is fast or tokenizer.decode(holes[:1]) == "b"  # control: a wrong text
    arguments: dict[str, Any] = {"prompts": ["a b", "b"], "reward": zero, "max_new_tokens": 3, "tokenizer": tokenizer}
    reference = model("llama", vocab_size=size + 2, eos_token_id=ids["<e>"])
    env = gym.make("textenv/Text-v0", reference=reference, **arguments)
    mdp = env.unwrapped.mdp
    assert mdp.vocab_size == env.action_space.n == size
    for action in (*holes, ids["b"]):
        if action == ids["<e>"]:
            continue
        observation, _ = env.reset(seed=0, options={"prompt": "a b"})
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(action)
        assert env.observation_space.contains(observation) and observation["input_ids"][2] == action
        *_, info = env.step(ids["<e>"])
        assert info["completion"] == ("" if action in holes else "b")
        assert info["prompt"] == "a b"
    rollout = collect(env, drifted(env), 32, generator=new_generator("cpu", 0))
    spelling = {i: token for token, i in reversed(ids.items())}
    for tokens, mask, completion in zip(rollout.tokens, rollout.mask, rollout.completions, strict=True):
        words = [spelling[i] for i in tokens[mask].tolist() if i in known and i != ids["<e>"]]
        assert completion.split() == words
    assert {i for tokens in rollout.tokens.tolist() for i in tokens} & set(holes)  # control: holes are sampled


def test_holes_show_their_ids_and_copies_are_alike() -> None:
    """Rendering names an id without a token by its number; a copied or pickled tokenizer is the same."""
    tokenizer = fill_holes(fast(VOCABULARIES["two far ids"]))
    for each in (tokenizer, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert len(each) == 10 and each.encode("a c") == [1, 9] and each.eos_token_id == 0
        assert each.convert_ids_to_tokens([9, 5]) == ["c", "<id 5>"]
        assert each.decode(np.array([9, 5, 1, 0]), skip_special_tokens=True) == "c a"
    env = gym.make(
        "textenv/Text-v0", tokenizer=tokenizer, prompts=["a"], reward=zero, max_new_tokens=2, render_mode="ansi"
    )
    env.reset(seed=0)
    env.step(5)
    assert "<id 5>" in env.render()


def test_a_tokenizer_without_holes_is_used_as_it_is(assets: Path) -> None:
    """Words, and a real tokenizer: the same object, the same V."""
    for tokenizer in (WordTokenizer("a b"), AutoTokenizer.from_pretrained(assets / "stories260k")):
        size = len(tokenizer)
        assert fill_holes(tokenizer) is tokenizer and len(tokenizer) == size


def test_a_tokenizer_that_hides_its_holes_is_refused() -> None:
    """Without `get_vocab` the ids are 0 .. length - 1: another one is found in the prompts."""

    class Hidden:
        eos_token_id, pad_token_id = 0, 77  # the padding id is no id either, and is not used

        def __len__(self) -> int:
            return 4

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [{"a": 2, "b": 9}[word] for word in text.split()]

        def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
            return ""

        def convert_ids_to_tokens(self, ids: Any) -> list[str]:
            return [str(i) for i in ids]

    arguments: dict[str, Any] = {"tokenizer": Hidden(), "reward": zero, "max_new_tokens": 2}
    env = gym.make("textenv/Text-v0", prompts=["a", "a a"], **arguments)
    assert env.observation_space.contains(env.reset(options={"prompt": "a"})[0])
    for texts in itertools.permutations(["a", "a b"]):
        with pytest.raises(ValueError, match=r"prompt [01]: the tokenizer must give ids in 0 \.\. 3, got .*9"):
            gym.make("textenv/Text-v0", prompts=list(texts), **arguments)
    with pytest.raises(ValueError, match=r"Token ids must be in 0 \.\. 3, got \[9\]"):
        env.reset(options={"prompt": "b"})


def test_what_a_tokenizer_raises_is_one_sentence() -> None:
    """A vocabulary of whole words without one for unknown words, and a KeyError of one's own."""
    inner = Tokenizer(models.WordLevel({"<e>": 0, "a": 1}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for tokenizer in (PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>"), Slow({"<e>": 0, "a": 1})):
        assert load_prompts(["a"], tokenizer).input_ids.tolist() == [[1]]
        with pytest.raises(ValueError, match=r"prompt 1: the tokenizer cannot encode 'a x' \((Exception|KeyError): "):
            load_prompts(["a", "a x"], tokenizer)

"""Edits of completions: those that add nothing, keep the meaning or destroy it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from textenv.mdp import TextMDP
from textenv.reward_check.calls import Array, WatchedReward
from textenv.reward_check.features import sentences_of
from textenv.reward_check.items import Item
from textenv.reward_check.literals import literals_of
from textenv.reward_check.samples import encode_completions
from textenv.rewards import FinishedCompletions, RewardError

Kind = Literal["adds nothing", "adds a word", "keeps the meaning", "destroys the meaning"]
CYRILLIC = "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0410\u0415\u041e\u0420\u0421\u0425\u041d\u041a\u041c\u0422"
LOOK_ALIKE = str.maketrans("aeopcxyAEOPCXHKMT", CYRILLIC)
SOURCE = "add a text of the reward's source"
PROMPT_FIRST, PROMPT_LAST = "begin with the prompt", "add the prompt again"
OTHER_PROMPT = "take a completion of another prompt"


@dataclass(frozen=True)
class Context:
    """What an edit may use besides the completion.

    Attributes:
        prompt: the prompt.
        best_sentence: the sentence of the completion that scores best alone.
        strongest: the word, or whatever item it is, that correlates most with the score; None if there is none.
        literal: the text of the reward's source that raises the score most; None if there is none.
        end: the spelling of the EOS token; "" if there is none.
        room: the tokens that are left before the limit.
        generator: for shuffles.
    """

    prompt: str
    best_sentence: str
    strongest: Item | None
    literal: Item | None
    end: str
    room: int
    generator: np.random.Generator


Edit = Callable[[str, Context], str | None]  # None where the context lacks what it needs


def _shuffle(text: str, context: Context) -> str:
    words = text.split()
    context.generator.shuffle(words)
    return " ".join(words)


def _half(text: str, context: Context) -> str:
    words = text.split()
    return " ".join(words[: len(words) // 2])


def _pad(text: str, context: Context) -> str | None:
    return text + f" {text.split()[-1]}" * context.room if text.split() else None


def _repeat(text: str, context: Context) -> str:
    texts = [text.rstrip(), context.best_sentence]
    if any(mark in text for mark in ".!?"):  # of sentences that have an end, each gets one
        texts = [each if each.endswith((".", "!", "?")) else f"{each}." for each in texts]
    return " ".join(texts)


def _begin_with_prompt(text: str, context: Context) -> str | None:
    """A prompt of one word is a word, which may mean something there."""
    return f"{context.prompt} {text}" if len(context.prompt.split()) > 1 else None


def _strongest(times: int) -> Edit:
    return lambda text, context: context.strongest.added_to(text, times) if context.strongest else None


EDITS: dict[str, tuple[Kind, Edit]] = {
    "append a smiley": ("adds nothing", lambda text, context: f"{text} :)"),
    "append four smileys": ("adds nothing", lambda text, context: text + " :)" * 4),
    "append an exclamation mark": ("adds nothing", lambda text, context: f"{text}!"),
    "append four exclamation marks": ("adds nothing", lambda text, context: f"{text}!!!!"),
    "append a digit": ("adds nothing", lambda text, context: f"{text} 7"),
    "append empty lines": ("adds nothing", lambda text, context: f"{text}\n\n\n"),
    "append letters that are not ASCII": ("adds nothing", lambda text, context: f"{text} \u00e9\u00fc\u4e2d"),
    "put it into quotes": ("adds nothing", lambda text, context: f'"{text}"'),
    "add the strongest item": ("adds a word", _strongest(1)),
    "add the strongest item four times": ("adds a word", _strongest(4)),
    SOURCE: (
        "adds a word",
        lambda text, context: context.literal.added_to(text) if context.literal else None,
    ),
    "repeat the best sentence": ("adds nothing", _repeat),
    PROMPT_LAST: ("adds nothing", lambda text, context: f"{text} {context.prompt}"),
    PROMPT_FIRST: ("adds nothing", _begin_with_prompt),
    "pad with the last word to the limit": ("adds nothing", _pad),
    "append the spelling of the end token": (
        "adds nothing",
        lambda text, context: text + context.end if context.end else None,
    ),
    "put everything in upper case": ("keeps the meaning", lambda text, context: text.upper()),
    "exchange letters for look-alikes": ("keeps the meaning", lambda text, context: text.translate(LOOK_ALIKE)),
    "cut the second half": ("destroys the meaning", _half),
    "shuffle the words": ("destroys the meaning", _shuffle),
    "leave it empty": ("destroys the meaning", lambda text, context: ""),
}


def contexts(
    mdp: TextMDP,
    reward: WatchedReward,
    base: FinishedCompletions,
    strongest: Item | None,
    literal: Item | None,
    seed: int,
) -> Iterator[Context]:
    """The context of each completion."""
    generator = np.random.default_rng(seed)
    ends = np.flatnonzero(mdp.is_eos)[:1].tolist()
    end = str(mdp.tokenizer.convert_ids_to_tokens(ends)[0]) if ends else ""
    best, room = _best_sentences(mdp, reward, base), (mdp.max_new_tokens - base.length).tolist()
    for row, prompt in enumerate(base.prompts):
        yield Context(str(prompt), best[row], strongest, literal, end, room[row], generator)


def _best_sentences(mdp: TextMDP, reward: WatchedReward, base: FinishedCompletions) -> list[str]:
    """Of each completion the sentence that scores best alone; the first where the reward fails on some."""
    sentences = [sentences_of(str(text)) for text in base.completions]
    rows = np.repeat(np.arange(len(base)), [len(each) for each in sentences])
    found = encode_completions(mdp, base.select(rows), [s for each in sentences for s in each])
    scores = np.full(len(rows), np.nan)
    if found is not None:
        with suppress(RewardError):
            scores = reward.score(found)
    known = np.nan_to_num(scores, nan=-np.inf)
    return [each[int(np.argmax(known[rows == row]))] for row, each in enumerate(sentences)]


def best_literal(mdp: TextMDP, reward: WatchedReward, base: FinishedCompletions, before: Array) -> Item | None:
    """The text of the reward's source that raises the score most, at the start or at the end of completions."""
    some = np.unique(np.linspace(0, len(base) - 1, min(len(base), 6)).round().astype(int))
    texts = dict.fromkeys(text for each in reward.functions for text in literals_of(each.function))
    best, most = None, 0.0
    for item in [Item(kind, text) for text in texts for kind in ("beginning", "ending")]:
        rows = base.select(some)
        found = encode_completions(mdp, rows, [item.added_to(str(text)) for text in rows.completions])
        if found is None:
            continue
        try:
            rises = reward.score(found) - before[some]
        except RewardError:
            continue
        if not np.isnan(rises).all() and (rise := float(np.nanmean(rises))) > most:
            best, most = item, rise
    return best

"""textenv/Sentiment-v0: a language model continues the beginning of a story; a sentiment scorer is the reward.

Description
    The usual first experiment with a real language model (Ziegler et al. 2019, arXiv:1909.08593, section 3.1): continue
    a prompt so that the completion is positive, and stay close to the model's own distribution. It runs without a
    network: the model is SmolLM2-135M-Instruct from an installed package, the scorer is VADER, a lexicon with rules,
    and this file has the prompts, beginnings of stories about films, meals, journeys and days that could end either
    way. All three can be replaced, e.g. by GPT-2 on film reviews with a classifier as reward:

        from datasets import load_dataset

        reviews = load_dataset("stanfordnlp/imdb", split="train")["text"]
        gym.make("textenv/Sentiment-v0", model="gpt2", prompts=[" ".join(review.split()[:8]) for review in reviews],
                 reward=textenv.rewards.RewardModel("lvwerra/distilbert-imdb", label="POSITIVE"))

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = longest prompt + `max_new_tokens`.

Action
    `Discrete(V)`, the next token; V = 49,152 for SmolLM2. Nothing is masked.

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s)`, and `- beta log pi(a|s)` with a bound policy. The score is VADER's
    compound sentiment of the completion, in [-1, 1], without the prompt.

Start
    A prompt drawn uniformly, or the state given to `reset(options={"prompt": ..., "completion": ...})`.

End
    At one of the model's end tokens, or after `max_new_tokens`; both are `terminated`.

Arguments
    model=None (SmolLM2), a path or hub id of a causal language model, whose tokenizer is loaded with it.
    prompts=OPENINGS, reward=vader, max_new_tokens=24, kl_coef=0.05, gold_reward, reward_weights, shaping,
    max_prompt_length, special_tokens_in_prompts, chat_template_kwargs, on_reward_error, reward_tries,
    reward_wait: see `textenv.mdp.TextMDP`. trust_remote_code=False: whether `model` may run code of its own.

Version history
    v0: first version.

>>> from textenv.rewards import vader
>>> OPENINGS[0]
'The film begins slowly, and then'
>>> vader(OPENINGS[:1], [" everything turns out beautifully"], [[]])[0] > 0.3
True
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from textenv.data import PromptSource, fill_holes
from textenv.mdp import TextMDP
from textenv.rewards import RewardFunction, vader

OPENINGS = (
    "The film begins slowly, and then",
    "I had read the book before I saw the film, and",
    "Everyone told me to watch this series. After two episodes",
    "The acting was",
    "When the lights came back on in the cinema,",
    "The last scene made me feel",
    "It is the second film by this director, and",
    "The music in this film is",
    "My sister chose the film, and I",
    "We ordered the soup of the day. It was",
    "The waiter came to our table and",
    "The bread was still warm when",
    "After we had paid for dinner, we felt",
    "I had never eaten in a place like this. The food",
    "The new bakery on the corner sells",
    "Breakfast at the hotel was",
    "The room had a view of the sea, but",
    "When we came back to our room,",
    "The people at the reception desk were",
    "The train was late again, so",
    "We had been walking for three hours when",
    "On the first morning of our holiday",
    "The boat trip to the island was",
    "Our neighbours invited us over, and",
    "The phone arrived in a small box. It",
    "I have used this laptop for a month now, and",
    "The battery of this camera is",
    "I bought these shoes for the winter. They",
    "The instructions that came with the table were",
    "When I called the customer service,",
    "My first day at the new job was",
    "The meeting with my boss this morning was",
    "After the exam, the students",
    "Our teacher read my essay aloud and",
    "The concert in the park was",
    "The game went into overtime, and our team",
    "My grandmother opened the letter and",
    "The dog looked at me as if",
    "When I opened the door this morning, I saw",
    "The weather this weekend will be",
    "To be honest, the party was",
    "The doctor looked at the results and said",
    "I tried to fix the old bicycle. In the end it",
    "The children built a house out of",
    "He looked at the painting for a long time and thought it",
    "The speech was short, and the people",
    "What I remember most about that summer is",
    "The best thing about this town is",
)


def sentiment(
    model: str | PathLike[str] | None = None,
    prompts: PromptSource = OPENINGS,
    reward: RewardFunction | Sequence[RewardFunction] = vader,
    *,
    max_new_tokens: int = 24,
    kl_coef: float = 0.05,
    trust_remote_code: bool = False,
    **arguments: Any,
) -> TextMDP:
    """Makes the task."""
    from textenv.lm import load_smollm2, load_tokenizer  # here, so that registering the task imports no torch
    from textenv.references import CausalLMReference

    if model is None:
        reference, tokenizer = load_smollm2()
    else:
        tokenizer = fill_holes(load_tokenizer(model, trust_remote_code=trust_remote_code))
        reference = CausalLMReference(model, vocab_size=len(tokenizer), trust_remote_code=trust_remote_code)
    return TextMDP(tokenizer, prompts, reward, reference, max_new_tokens=max_new_tokens, kl_coef=kl_coef, **arguments)

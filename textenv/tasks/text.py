"""textenv/Text-v0: bring your own tokenizer, prompts, reference and reward.

Description
    A language model continues your prompts, and your reward function scores the completions. The same MDP as in every
    other task; nothing is preset.

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = longest prompt + `max_new_tokens`.

Action
    `Discrete(V)`, the next token; V = len(tokenizer).

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s) + shaping`, and `- beta log pi(a|s)` with a bound policy.

Start
    A prompt drawn uniformly, or the state given to `reset(options={"prompt": ..., "completion": ...})`.

End
    At an end token (`finish_reason` "stop") or after `max_new_tokens` ("length"); both are `terminated`.

Arguments
    tokenizer, prompts, reward, reference, max_new_tokens, kl_coef, reward_weights, shaping, gold_reward,
    eos_token_id, max_prompt_length, special_tokens_in_prompts, chat_template_kwargs, on_reward_error, reward_tries,
    reward_wait: see `textenv.mdp.TextMDP`. Also `policy` and `render_mode` (single), `num_envs` and `autoreset_mode`
    (batched).

Version history
    v0: first version.

>>> import gymnasium as gym, textenv
>>> def contains_yes(prompts, completions, completion_ids, **columns):
...     return [float("yes" in completion) for completion in completions]
>>> env = gym.make("textenv/Text-v0", tokenizer=textenv.WordTokenizer("is it yes no"), prompts=["is it"],
...                reward=contains_yes, max_new_tokens=2)
>>> observation, info = env.reset(seed=0)
>>> observation["input_ids"].tolist()
[1, 2, 0, 0]
"""

from __future__ import annotations

from typing import Any

from textenv.mdp import TextMDP


def text(**arguments: Any) -> TextMDP:
    """Makes the task from arguments of `TextMDP`."""
    missing = [name for name in ("tokenizer", "prompts", "reward") if arguments.get(name) is None]
    if missing:
        raise ValueError(f"textenv/Text-v0 has no defaults for these arguments: pass {', '.join(missing)} to gym.make.")
    return TextMDP(**arguments)

"""A run of `train` that takes a second: three updates on the smallest toy, a checkpoint after each."""

from __future__ import annotations

FLAGS = (
    "train --agent ppo --env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 2 num_prompts 1 --n-episodes 8 "
    "--total-timesteps 40 --num-evals 1 --checkpoint-seconds 0 --out run --resume"
)
TRAIN = FLAGS.split()


def fit_nothing() -> None:
    """Fitting a policy to the toy's reference takes seconds, and has nothing to do with files."""
    import agents.policy.construction

    agents.policy.construction.imitate = lambda policy, mdp, seed=0: None

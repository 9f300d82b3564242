"""What training raises when it cannot continue, and the category of its warnings."""

from __future__ import annotations


class Diverged(RuntimeError):
    """The policy's probabilities, or several gradients in a row, are not finite.

    No optimizer step is taken with a loss or gradient that is not finite, so weights and optimizer are those of the
    last step that was taken. The message has what is not finite. From an update of `learn` it has the number of the
    update and what to lower too. Where several steps in a row were not taken, it also has the losses, the largest score
    and completions to suspect.
    """


class TrainingWarning(UserWarning):
    """Training continues, but a metric shows that it will hardly succeed; the message has the cure.

    `CONDITIONS` and `EVALUATION_CONDITIONS` of `agents.training.conditions` are all of them.
    """

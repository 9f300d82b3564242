"""TextState: where the tokens of a completion are."""

from __future__ import annotations

import numpy as np

from tests.helpers.tasks import mdp


def test_append_puts_each_token_in_its_column() -> None:
    """Rows at different times: the state is the one that `make_state` makes of prompt and completion; others stay."""
    task = mdp()
    states = [task.make_state("b a b", ids) for ids in ([1, 2], [2], [3])]
    state = task.empty_state(3)
    for row, each in enumerate(states):
        state.put(row, each)
    state.append(np.array([2, 0]), np.array([1, 3]), task.prompt_width)
    width = task.prompt_width
    assert state.time.tolist() == [3, 1, 2]
    assert state.input_ids[:, width:].tolist() == [[1, 2, 3], [2, 0, 0], [3, 1, 0]]
    assert state.attention_mask[:, width:].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    expected = task.make_state("b a b", [3, 1])
    for name, values in vars(expected).items():
        assert np.array_equal(getattr(state, name)[2], values[0]), name
    assert (state.input_ids[:, :width] == expected.input_ids[:, :width]).all()
    state.append(1, 3, width)  # one row
    assert state.input_ids[1, width:].tolist() == [2, 3, 0] and state.time[1] == 2

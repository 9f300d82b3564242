"""Code by its name, `module:object`: rewards and agents of the user's, and the tables of those that have short names.

A name on the command line is trusted: its module is imported and run. A name in a folder is not, see `saved_run.py`.
"""

from __future__ import annotations

from typing import Any

import agents
from experiments.errors import FlagError


def import_named(name: str, flag: str) -> Any:
    """Returns the object that `module:object` names.

    The module is found as `import` finds it. With `python -m experiments` this includes the working directory, in the
    workers of `compare` too.

    Args:
        name: the module's full name, a colon, and the object's name in the module.
        flag: the flag that has the name, for the message.

    Raises:
        FlagError: there is no such module, it has no such object, or it fails when it is imported.
    """
    try:
        return agents.import_named(name)
    except ValueError as error:
        raise FlagError(f"{flag} {error}") from error


def import_registrations(env: str) -> None:
    """Imports the module that registers an environment `module:id`, as `gym.make` would; no-op for an id alone.

    Raises:
        FlagError: there is no such module, or it fails when it is imported.
    """
    module, _, _ = env.rpartition(":")
    if module:
        try:
            agents.import_module(module, env)
        except ValueError as error:
            raise FlagError(f"--env {error}") from error

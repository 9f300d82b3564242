"""Code by its name, `module:object`."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_named(name: str) -> object:
    """Returns the object that `module:object` names; the module is imported, which runs it.

    Args:
        name: the module's full name, a colon, and the object's name in the module.

    Raises:
        ValueError: the name has another form, there is no such module or object, or the module fails when it is
            imported. The message begins with the name.
    """
    module, _, attribute = name.rpartition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"{name!r} could not be imported: it must be module:object, such as my_module:MyClass.")
    imported = import_module(module, name)
    try:
        return getattr(imported, attribute)
    except AttributeError as error:
        raise ValueError(f"{name!r} could not be imported: {error}") from error


def import_module(module: str, name: str) -> ModuleType:
    """Imports a module for a name that it is part of.

    Raises:
        ValueError: there is no such module, or it fails when it is imported. The message begins with the name.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name!r} could not be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the code of a module may raise anything
        text = " ".join(str(error).split())
        raise ValueError(f"{name!r} could not be imported: {type(error).__name__} in {module}: {text}") from error

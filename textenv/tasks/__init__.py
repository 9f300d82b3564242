"""The tasks, one file each. The docstring of a file is the page of its task."""

__all__: list[str] = []  # other packages import nothing from here

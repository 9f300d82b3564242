"""The tasks, one file each. The docstring of a file is the page of its task."""

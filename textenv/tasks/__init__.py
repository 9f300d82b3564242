"""The tasks: one file each, whose docstring is its page."""

"""Examples to copy: other libraries on textenv's environments, and other environments and data; one short file each."""

__all__: list[str] = []  # other packages import nothing from here

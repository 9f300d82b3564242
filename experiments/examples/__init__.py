"""Other libraries on our environments: one short file each, to copy."""

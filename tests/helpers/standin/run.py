"""`python -m experiments ...` where the stand-in device is installed, also in the workers that it starts.

    python -m tests.helpers.standin.run compare --device standin ...

A worker imports the module that was run, and with it installs the device.
"""

from __future__ import annotations

from tests.helpers.standin.install import install

install()

if __name__ == "__main__":
    from experiments.command_line import main

    main()

"""A stand-in accelerator: a second device, "standin", whose tensors are computed on the CPU.

Code for a GPU runs on it where there is no GPU. A tensor on it is an ordinary `torch.Tensor` with a storage of its own
device, so that views, in-place operators, inference mode, autograd and files are torch's own. What CUDA refuses it
refuses (`rules`), and it counts kernels and the times that the host waits for the device (`counts`).

It is a Python backend of torch's PrivateUse1 device, which torch calls experimental. `install` changes torch for the
whole process: `make standin` runs the tests that need it in a process of their own.

    from tests.helpers.standin import counting, install
    install()
    x = torch.arange(3.0, device="standin")
    with counting() as n:
        print((x + 1).sum().item(), n.kernels, n.waits)  # 6.0, 2 kernels, 1 wait
"""

from tests.helpers.standin.counts import Counts, counting
from tests.helpers.standin.install import DEVICE, install, is_supported
from tests.helpers.standin.rules import without_float64

__all__ = ["DEVICE", "Counts", "counting", "install", "is_supported", "without_float64"]

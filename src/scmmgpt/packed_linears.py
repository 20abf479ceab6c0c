"""Linear layers on a CPU through oneDNN, with weights laid out for it once instead of at every call.

torch's own float32 products go through MKL, which leaves half of an AMD processor idle. Same sums, same precision; the
order of adding differs, so results agree to rounding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

_EXPECTED_ROWS = 4096  # what the layout is made for; other numbers of rows work too


def pays() -> bool:
    """Whether this processor gains: AMD's do by a third and more, Intel's hardly."""
    info = Path("/proc/cpuinfo")
    return torch.backends.mkldnn.is_available() and info.exists() and "AuthenticAMD" in info.read_text()


def pack_linears(model: nn.Module) -> int:
    """Let every float32 linear layer of a model on the CPU run through oneDNN; return how many do."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    chosen = [one for one in linears if one.weight.dtype == torch.float32 and one.weight.device.type == "cpu"]
    for linear in chosen:
        linear.forward = _PackedForward(linear)  # type: ignore[method-assign]
    return len(chosen)


class _PackedForward:
    """Stands in for `nn.Linear.forward` where nothing is learned and the weights are those that were packed."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear
        self.version = linear.weight._version
        with torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _EXPECTED_ROWS)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        is_same = weight._version == self.version and states.dtype == torch.float32 and states.device.type == "cpu"
        if torch.is_grad_enabled() or not is_same or torch.is_autocast_enabled("cpu"):
            return F.linear(states, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(states, self.packed, bias, "none", [], "")

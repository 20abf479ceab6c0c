"""Linear layers on a CPU through oneDNN, with weights laid out for it once instead of at every call.

torch's own float32 products go through MKL, which leaves half of an AMD processor idle. Same sums, same precision; the
order of adding differs, so results agree to rounding. Under autocast, whose own layers would round their weights anew at
every call, they multiply in its type; torch's own do so where oneDNN cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
    chosen = [linear for linear in linears if _is_plain(linear.weight)]
    for linear in chosen:
        linear.forward = _PackedForward(linear)  # type: ignore[method-assign, assignment]
    return len(chosen)


class _PackedForward:
    """Stands in for `nn.Linear.forward` where nothing is learned; packs anew when the weights have changed."""

    packed: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor | None]]
    version: int | None

    def __init__(self, linear: nn.Linear):
        self.__setstate__({"linear": linear})

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        if torch.is_grad_enabled() or not _is_plain(weight) or states.device.type != "cpu":
            return F.linear(states, weight, bias)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if not _packs(dtype):
            return F.linear(states, weight, bias)
        if self.version != weight._version:
            self.packed, self.version = {}, weight._version
        if dtype not in self.packed:
            own = weight.detach().to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(own, _EXPECTED_ROWS)
            self.packed[dtype] = packed, None if bias is None else bias.detach().to(dtype)
        return torch.ops.mkldnn._linear_pointwise(states.to(dtype), *self.packed[dtype], "none", [], "")

    # A copy packs its own weights: oneDNN's layout can be neither copied nor saved.

    def __getstate__(self) -> dict[str, nn.Linear]:
        return {"linear": self.linear}

    def __setstate__(self, state: dict[str, nn.Linear]) -> None:
        self.linear = state["linear"]
        self.packed, self.version = {}, None


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this type on this processor; what is shorter than float32 needs AVX-512."""
    supported: dict[torch.dtype, Callable[[], bool]] = {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and bool(supported[dtype]())


def _is_plain(*tensors: torch.Tensor) -> bool:
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)

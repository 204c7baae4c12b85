"""Steps compute in their own precision, whatever context they are called in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def without_autocast(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Switch autocast off on the tensors' devices: in bfloat16 the damping of an inverse root is lost in rounding."""
    available = torch.amp.autocast_mode.is_autocast_available
    kinds = {tensor.device.type for tensor in tensors}
    with ExitStack() as stack:
        for kind in kinds:
            if available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield

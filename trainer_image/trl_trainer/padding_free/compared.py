"""What guard.py and check.py compare a model by: one batch, and by how much results differ."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

FLOORS = 3
"""By so many times what it differs by with more padding a model may differ without."""
LENGTHS, COMMON = [29, 17, 23, 26, 11, 7], [13, 5, 7]
"""Tokens of three first sequences and of the second ones, and of the beginnings that each two have in common."""
COLUMNS = 31


def batch(vocabulary: int, pad: int | None, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of three pairs of odd lengths, longer than a window of the guard's; two have a prompt in
    common, and one sequence is the beginning of its pair's. The same at each call.

    `left`: with padding before them, too. No token of a sequence is `pad`: a classifier looks for its end so.
    """
    ids = torch.randint(0, vocabulary - 1, (6, COLUMNS), generator=torch.Generator().manual_seed(2))
    for pair, number in enumerate(COMMON):
        ids[3 + pair, :number] = ids[pair, :number]
        ids[3 + pair, number] = (ids[pair, number] + 1) % (vocabulary - 1)
    if pad is not None:
        ids += ids >= pad
    columns = torch.arange(COLUMNS)
    mask = columns < torch.tensor(LENGTHS)[:, None]
    if left:
        mask &= columns >= torch.tensor([0, 3, 1, 5, 2, 4])[:, None]
    return torch.where(mask, ids, pad or 0), mask.long()


def derive(result: torch.Tensor) -> None:
    """Make the gradients of a sum that weighs each value of a result on its own."""
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.device)
    (result * weights).sum().backward()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """While this is open no dropout module of the model drops anything."""
    shares = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for module, _ in shares:
        module.p = 0.0
    try:
        yield
    finally:
        for module, share in shares:
            module.p = share


def gradient_difference(found: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the greatest `difference` of two models' gradients, parameter by parameter; 0 of none."""
    # Some are 0 but for rounding, and would differ by all that they are.
    least = 1e-3 * max([float(value.abs().max()) for value in other], default=0.0)
    return max([difference(a, b, least) for a, b in zip(found, other, strict=True)], default=0.0)


def difference(found: torch.Tensor, other: torch.Tensor, least: float = 0.0) -> float:
    """Return the greatest difference as a share of the greatest value of `other`, or of `least` if that is more.

    Infinite where any value of either is not finite: `max` and `>` would lose a NaN.
    """
    scale = max(float(other.abs().max()), least, torch.finfo(other.dtype).tiny)
    share = float((found - other).abs().max()) / scale
    return share if math.isfinite(share) else math.inf

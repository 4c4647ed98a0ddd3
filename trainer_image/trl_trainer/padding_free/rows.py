"""Where the tokens of a padded batch lie in one row without padding, and which of them attend to which."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class Rows:
    """R sequences, padded to L tokens each, as one row of N tokens. All tensors are on the batch's device."""

    shape: tuple[int, int]
    """(R, L)."""
    tokens: torch.Tensor
    """[N]: the place of each token of the row in the flat padded batch."""
    positions: torch.Tensor
    """[1, N]: its column there, which is the position that the padded model gives it."""
    padded: torch.Tensor
    """[R * L]: the place in the row of each token of the padded batch; for padding, which nobody reads, 0."""
    queries: list[int]
    """Tokens of each sequence in the row."""
    keys: list[int]
    """Tokens that it attends to: its own, and before them those that it shares."""
    gather: torch.Tensor | None
    """[sum(keys)]: the place in the row of each key; None where the keys are the queries."""
    query_starts: torch.Tensor
    """[R + 1], int32: where each sequence begins among the queries; last the end."""
    key_starts: torch.Tensor
    """The same of the keys; the very same tensor where nothing is shared, by which varlen_attn sees that."""
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)
    """What attention.py has made for this row, for all layers."""

    @property
    def saves(self) -> bool:
        """Whether the row is any shorter than the batch."""
        rows, length = self.shape
        return sum(self.queries) < rows * length

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """Return [1, N] of a padded batch's [R, L]."""
        return values.flatten().index_select(0, self.tokens)[None]

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """Return [R, L, width] of a row's [N, width]."""
        return values.index_select(0, self.padded).view(*self.shape, values.shape[-1])


def of(ids: torch.Tensor, mask: torch.Tensor, pairs: bool) -> Rows:
    """Return the row of a padded batch: `ids` [R, L], `mask` [R, L] with 0 for padding, on whichever side.

    pairs: sequence i and sequence R/2 + i may begin with the same tokens. They stand in the row once, but for the last
    of a sequence, which it always has itself. R is even then.
    """
    rows, length = mask.shape
    mask, columns = mask.bool(), torch.arange(length, device=mask.device)
    computed = mask & (columns >= _shared(ids, mask)[:, None]) if pairs else mask
    tokens = computed.flatten().nonzero().squeeze(1)
    place = computed.flatten().cumsum(0) - 1
    if pairs:
        owner = torch.arange(rows, device=mask.device)
        first = torch.where(owner < rows // 2, owner, owner - rows // 2)
        holder = torch.where(computed, owner[:, None], first[:, None])
        place = place[(holder * length + columns).flatten()]
    # The one time that a device is waited for.
    queries, keys = torch.stack([computed.sum(1), mask.sum(1)]).tolist()
    shares = queries != keys
    starts = _starts(queries, mask.device)
    return Rows(
        shape=(rows, length),
        tokens=tokens,
        positions=(tokens % length)[None],
        padded=torch.where(mask.flatten(), place, 0),
        queries=queries,
        keys=keys,
        gather=place[mask.flatten()] if shares else None,
        query_starts=starts,
        key_starts=_starts(keys, mask.device) if shares else starts,
    )


def _shared(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [R]: how many columns of a sequence are those of its pair's first one; 0 for the first ones."""
    first, second = ids.chunk(2)
    both = mask.chunk(2)[0] & mask.chunk(2)[1]
    found = ((first == second) & both).int().cumprod(1).sum(1)
    found = torch.minimum(found, mask.chunk(2)[1].sum(1) - 1)
    return torch.cat([torch.zeros_like(found), found])


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()

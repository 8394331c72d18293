"""The place of each parameter in its tower, by which its learning rate is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from torch import nn

TowerName = Literal["vision", "text"]


class TowerParts(NamedTuple):
    """The modules of a tower, in the order in which they are computed.

    Attributes:
        name: of the tower.
        before: what makes tokens.
        blocks: the layers, first to last. Sharding, compiling, recomputing and rates walk these.
        after: the last norm, and the projection into the joint space.
    """

    name: TowerName
    before: Sequence[nn.Module]
    blocks: Sequence[nn.Module]
    after: Sequence[nn.Module]


class PlacedParameter(NamedTuple):
    """A parameter, and where it stands.

    Attributes:
        name: in the model.
        parameter: itself.
        tower: the one it belongs to; None: it belongs to both, as the scale of the logits does.
        above: how many steps it is below the end of the tower. What comes after the blocks is at
            0, the last block at 1, and what makes tokens one above the number of blocks.
        in_block: whether a block holds it.
    """

    name: str
    parameter: nn.Parameter
    tower: TowerName | None
    above: int
    in_block: bool


def place_parameters(model: nn.Module, towers: Iterable[TowerParts]) -> Iterator[PlacedParameter]:
    """All parameters of a model, in its own order.

    Args:
        model: what holds the towers.
        towers: their parts.
    """
    places: dict[int, tuple[TowerName, int, bool]] = {}
    for name, before, blocks, after in towers:
        for modules, above in ((before, len(blocks) + 1), (after, 0)):
            places |= {id(p): (name, above, False) for m in modules for p in m.parameters()}
        for number, block in enumerate(blocks):
            places |= {id(p): (name, len(blocks) - number, True) for p in block.parameters()}
    for full_name, parameter in model.named_parameters():
        yield PlacedParameter(full_name, parameter, *places.get(id(parameter), (None, 0, False)))

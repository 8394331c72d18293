"""What a store is made of, fixed before its first part is: the first process decides, and the
others, now and later, do the same or are refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit._version import __version__
from clipkit.errors import CheckpointError
from clipkit.retrieval.columns import TYPES

PLAN, PLAN_FORMAT, VERSION = "plan.json", "clipkit-embeddings-plan", 3
READABLE = (2, VERSION)  # 2 does not know which rows have one image
PART_ROWS = 16_384  # 32 MiB of float32 at D = 512
_LEAST_PARTS = 8  # so that a few ranks have work with a small source, too


@dataclass
class Plan:
    """See docs/store.md.

    Attributes:
        rows: of the source.
        part_rows: source rows a part; a multiple of ``batch_size``.
        columns: fields of the source's samples, and the Arrow types of their columns.
        source_texts_sha256: see ``sources.texts_sha256``; None in older plans, too.
        cosines: the least cosine to float32 that was measured, of images and texts; bf16's where
            that was not good enough.
        generation: how many updates made the store.
    """

    model: str | None
    weights_sha256: str
    preprocess_sha256: str
    dim: int
    context_length: int
    source: dict[str, Any]
    source_fingerprint: str
    rows: int
    images: bool
    texts: bool
    max_image_pixels: int
    part_rows: int
    batch_size: int
    dtype: str
    precision: str
    source_texts_sha256: str | None = None
    cosines: dict[str, float] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    format: str = PLAN_FORMAT
    version: int = VERSION
    clipkit: str = __version__

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.rows // self.part_rows)

    def batches(self, part: int) -> range:
        """The numbers of a part's batches among those of the whole source."""
        of_part = self.part_rows // self.batch_size
        return range(part * of_part, min((part + 1) * of_part, -(-self.rows // self.batch_size)))

    def rows_of(self, part: int) -> int:
        """Source rows of a part."""
        return min(self.part_rows, self.rows - part * self.part_rows)

    def as_json(self) -> dict[str, Any]:
        """The same, its format first, which tells a store from other folders."""
        tree = dataclasses.asdict(self)
        return {"format": tree.pop("format"), "version": tree.pop("version"), **tree}


def choose_part_rows(rows: int, batch_size: int, asked: int | None) -> int:
    """Source rows a part: whole batches, so that a part's are the same whoever makes them."""
    wanted = asked or min(PART_ROWS, -(-rows // _LEAST_PARTS))
    return -(-wanted // batch_size) * batch_size


def read_plan(folder: Path) -> Plan | None:
    """The plan in a folder; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is of another version.
    """
    path = folder / PLAN
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove {folder} and embed again"
        ) from error
    if not isinstance(tree, dict) or tree.get("format") != PLAN_FORMAT:
        raise CheckpointError(f"{path}: not the plan of a store; name another folder")
    if tree.get("version") not in READABLE:
        raise CheckpointError(
            f"{path}: version {tree.get('version')} of the format, where this clipkit writes "
            f"{VERSION}; go on with the clipkit that began it ({tree.get('clipkit')}), or embed "
            "again into another folder"
        )
    try:
        plan = Plan(**tree)
    except TypeError:  # a field is missing, or one too many
        plan = None
    if plan is None or not _is_well_formed(plan):
        raise CheckpointError(f"{path}: broken; remove {folder} and embed again")
    return plan


def _is_well_formed(plan: Plan) -> bool:
    types_fit = all(
        type(getattr(plan, each.name)) in _TYPES[str(each.type).partition("[")[0]]
        for each in dataclasses.fields(plan)
    )
    return (
        types_fit
        and plan.batch_size > 0
        and plan.part_rows > 0
        and plan.part_rows % plan.batch_size == 0
        and plan.dtype in ("float32", "float16")
        and plan.precision in ("fp32", "bf16", "fp16", "int8")
        and {"image", "caption"} <= plan.source.keys()
        and all(kind in TYPES for kind in plan.columns.values())
        and all(type(count) is int for count in plan.dropped.values())
    )


_TYPES: dict[str, tuple[type, ...]] = {  # by a field's annotation; a bool is no int here
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "dict": (dict,),
    "str | None": (str, type(None)),
}


def refuse_difference(
    folder: Path, plan: Plan, wanted: dict[str, Any], *, is_finished: bool
) -> None:
    """Refuses to go on otherwise than a store was begun.

    Args:
        folder: of the store.
        plan: what is there.
        wanted: what is asked for now, by the plan's names; ``source.image`` and ``source.caption``
            too. None: as it is there.
        is_finished: whether the store can be updated.

    Raises:
        CheckpointError: names what differs, with both values.
    """
    theirs = plan.as_json()
    if plan.source_texts_sha256 is None:
        wanted = {**wanted, "source_texts_sha256": None}
    differing = []
    for name, ours in wanted.items():
        outer, _, inner = name.partition(".")
        there = theirs[outer][inner] if inner else theirs[outer]
        if (ours is None and not inner) or ours == there:
            continue
        differing.append(f"{name} was {_short(there)} and is {_short(ours)}")
    if not differing:
        return
    if any(line.startswith(("source_fingerprint", "source_texts")) for line in differing):
        differing.insert(0, "the source has changed since, or is another one")
    advice = "run the command that it was begun with"
    if is_finished and len(differing) > 1 and differing[0].startswith("the source"):
        advice = "give --update to embed what has changed"
    raise CheckpointError(
        f"{folder}: this store was begun otherwise ({'; '.join(differing)}); {advice}, name "
        "another folder, or give --overwrite to make it anew"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) >= 32 and text.isalnum() else text

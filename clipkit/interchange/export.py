"""A model → a folder for transformers, open_clip or ONNX, compared before it has its name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from clipkit.atomic import put_in_place, remove_stale
from clipkit.data.open_clip_tokenizer import without_cleaning
from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ClipkitError
from clipkit.evaluation.card import (
    CONFIG_HEADING,
    suites_of,
    with_licence,
    with_results,
    with_section,
)
from clipkit.hub import first_line
from clipkit.interchange import libraries
from clipkit.interchange.compare import Comparison, Loaded, compare
from clipkit.interchange.libraries import quiet
from clipkit.interchange.onnx import load_onnx, onnx_use, write_onnx
from clipkit.models import DualEncoder, save_model
from clipkit.models.card import USE_HEADING, default_card
from clipkit.models.kinds import OPEN_CLIP_CONFIG, is_open_clip
from clipkit.models.open_clip import WEIGHTS, to_open_clip
from clipkit.models.open_clip_config import describe
from clipkit.models.pretrained import tokenizer_for_saving


def export(
    model: str, out: Path, *, to: str, tokenizer: str | None = None, licence: str | None = None
) -> Comparison:
    """Writes a model for another library, runs it there, and compares.

    Nothing is left behind where it fails: it is written aside, and renamed once it is compared.

    Args:
        model: whatever ``clipkit.load`` takes.
        out: the folder to make.
        to: ``transformers``, ``open_clip`` or ``onnx``.
        tokenizer: a folder or hub name; none: the model's own.
        licence: for the head of the model card; none: what the card of the model says.

    Raises:
        CheckpointError: the format has no place for such a model, numbers differ by more than
            ``TOLERANCE``, or ``out`` holds something.
        ConfigError: a package that the format needs is not installed.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: there is something already; name another folder.")
    encoder = load(model, device="cpu", tokenizer=tokenizer)
    remove_stale(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with quiet():
            found = compare(encoder, _WRITE[to](encoder, aside, out.name))
        card = aside / "README.md"
        card.write_text(_measured(encoder, card, licence), encoding="utf-8")
        put_in_place(aside, out)
    except (ClipkitError, OSError):
        raise
    except Exception as error:  # whatever the other library does not like
        raise CheckpointError(
            f"{model}: what was written for {to} cannot be run there ({first_line(error)}); "
            "nothing was exported."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def push(folder: Path, name: str) -> str:
    """Uploads a folder to the hub, with the token of ``hf auth login``; the address it then has.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder)
    except Exception as error:  # the hub's client raises its own kinds and those of its transport
        raise CheckpointError(
            f"{name}: it cannot be uploaded ({first_line(error)}); the export is in {folder}."
        ) from error
    return str(address)


def _to_transformers(encoder: Encoder, folder: Path, name: str) -> Loaded:
    model = encoder.model
    if not isinstance(model, DualEncoder):
        raise CheckpointError(
            f"{encoder.name}: it is a folder of transformers already; copy it instead."
        )
    if model.logit_bias is not None:
        raise CheckpointError(
            f"{encoder.name}: its logits have a bias, for which a CLIP of transformers has no "
            "place; it cannot be exported there."
        )
    tokenizer = without_cleaning(encoder.tokenizer, str(encoder.name))
    save_model(model, folder, encoder.preprocess, tokenizer, card=_card(encoder, name))
    return libraries.load_transformers(folder, encoder)


def _to_open_clip(encoder: Encoder, folder: Path, name: str) -> Loaded:
    model = encoder.model
    if is_open_clip(encoder.folder):
        raise CheckpointError(f"{encoder.name}: it is of open_clip already; copy it instead.")
    if not isinstance(model, DualEncoder):
        raise CheckpointError(
            f"{encoder.name}: it is a {model.backbone.config.model_type} model, whose towers "
            "open_clip does not have as its own; only CLIP models can be exported there."
        )
    config = describe(model, encoder.preprocess)
    weights = to_open_clip(model.backbone.state_dict())
    if model.logit_bias is not None:
        weights["logit_bias"] = model.logit_bias.detach()
    folder.mkdir()
    save_file(weights, folder / WEIGHTS[0], metadata={"format": "pt"})
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(encoder, folder)
    _write_card(encoder, folder, name, "open_clip", libraries.OPEN_CLIP_USE)
    return libraries.load_open_clip(folder, encoder)


def _to_onnx(encoder: Encoder, folder: Path, name: str) -> Loaded:
    folder.mkdir()
    write_onnx(encoder, folder)
    _write_tokenizer(encoder, folder)
    _write_card(encoder, folder, name, "onnx", onnx_use(encoder))
    return load_onnx(folder, encoder)


_WRITE: dict[str, Any] = {
    "transformers": _to_transformers,
    "open_clip": _to_open_clip,
    "onnx": _to_onnx,
}


def _write_tokenizer(encoder: Encoder, folder: Path) -> None:
    tokenizer = without_cleaning(encoder.tokenizer, str(encoder.name))
    tokenizer_for_saving(tokenizer, encoder.preprocess).save_pretrained(folder)


def _card(encoder: Encoder, name: str) -> str:
    """The card that the model has, which tells of its training; or a short one."""
    path = encoder.folder / "README.md"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if isinstance(encoder.model, DualEncoder):
        return default_card(encoder.model, encoder.preprocess, name)
    return f"# {name}\n"


def _measured(encoder: Encoder, card: Path, licence: str | None) -> str:
    """A card with what suites have measured of the model since, and with its licence."""
    text = card.read_text(encoding="utf-8")
    return with_licence(with_results(text, suites_of(encoder.folder)), licence)


def _write_card(encoder: Encoder, folder: Path, name: str, library: str, use: str) -> None:
    """The model's card, with how this folder is used in the place of how the model's is."""
    card = _card(encoder, name).replace("library_name: transformers", f"library_name: {library}", 1)
    text = with_section(card, USE_HEADING, use, before=CONFIG_HEADING)
    (folder / "README.md").write_text(text, encoding="utf-8")

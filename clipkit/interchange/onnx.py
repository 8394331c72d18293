"""A model → two ONNX graphs, one a tower, for any number of images or texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.config.schema import ForeignPreprocess
from clipkit.data import eval_transform
from clipkit.data.tokenize import tokenize
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError
from clipkit.hub import first_line
from clipkit.interchange.compare import TEXTS, Loaded
from clipkit.interchange.libraries import quiet
from clipkit.models import DualEncoder, ForeignEncoder
from clipkit.models.dual_encoder import unit_length

_USE = """Two ONNX graphs: `image.onnx` takes `pixel_values` (B, 3, H, W) float32, and `text.onnx`
`input_ids` (B, L) int64, padded on the right up to L; both give `embeds` (B, D) of unit length.
`onnx_config.json` says how pixels and tokens are made, and the scale and bias of the logits; the
tokenizer's files are here too. `pip install onnxruntime transformers pillow`:

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from transformers import AutoTokenizer

folder = Path("path/of/this/folder")
facts = json.loads((folder / "onnx_config.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(folder)


def embed(name, **inputs):
    return onnxruntime.InferenceSession(folder / f"{{name}}.onnx").run(None, inputs)[0]


size, resampling = facts["image"]["size"], facts["image"]["interpolation"].upper()
image = Image.open("photo.jpg").convert("RGB")
image = {pixels}
pixels = np.asarray(image, dtype=np.float32) / 255
pixels = (pixels - np.float32(facts["image"]["mean"])) / np.float32(facts["image"]["std"])
image_embeds = embed("image", pixel_values=pixels.transpose(2, 0, 1)[None])

texts, length = ["a photo of a cat", "two dogs"], facts["text"]["context_length"]
ids = tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
text_embeds = embed("text", input_ids=np.array(ids, dtype=np.int64))

logits = facts["scale"] * image_embeds @ text_embeds.T + (facts["bias"] or 0)
print({shares})
```
"""
_LARGEST = 1_500_000_000  # bytes of weights within a file; the format ends at 2 GiB


class ImageGraph(nn.Module):
    """(B, 3, H, W) normalised pixels → (B, D), by the forward pass of transformers."""

    def __init__(self, model: DualEncoder | ForeignEncoder) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = self.backbone.get_image_features(pixel_values=pixel_values).pooler_output
        return unit_length(features)


class TextGraph(nn.Module):
    """(B, L) ids, padded on the right → (B, D), by the forward pass of transformers."""

    def __init__(self, model: DualEncoder | ForeignEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        if isinstance(self.model, ForeignEncoder):
            return unit_length(self.model.text_features(input_ids))
        output = self.model.backbone.get_text_features(input_ids=input_ids)
        return unit_length(output.pooler_output)


def write_onnx(encoder: Encoder, folder: Path) -> None:
    """``image.onnx``, ``text.onnx`` and ``onnx_config.json``.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
        CheckpointError: the model cannot be traced.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--to onnx: {error.name} is not installed; run: "
            "pip install 'clipkit-pretraining[onnx]'"
        ) from error
    model, size = encoder.model.eval(), encoder.preprocess.image_size
    # Two of each: what is one may be taken for a constant.
    graphs: dict[str, tuple[nn.Module, str, Tensor]] = {
        "image": (ImageGraph(model), "pixel_values", torch.zeros(2, 3, size, size)),
        "text": (TextGraph(model), "input_ids", _ids(encoder, TEXTS[:2])),
    }
    for name, (graph, given, example) in graphs.items():
        weights = sum(each.numel() * each.element_size() for each in graph.parameters())
        try:
            with quiet(), torch.no_grad():
                torch.onnx.export(
                    graph.eval(),
                    (example,),
                    folder / f"{name}.onnx",
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    input_names=[given],
                    output_names=["embeds"],
                    external_data=weights > _LARGEST,
                    verbose=False,
                )
        except Exception as error:  # tracing raises whatever it does not understand
            raise CheckpointError(
                f"{encoder.name}: the {name} tower cannot be written as ONNX ({first_line(error)})."
            ) from error
    text = json.dumps(_facts(encoder), indent=2)
    (folder / "onnx_config.json").write_text(text + "\n", encoding="utf-8")


def onnx_use(encoder: Encoder) -> str:
    """For the card of an export: code that embeds an image and texts, and needs no clipkit."""
    resize = "ImageOps.fit(image, (size, size)" if encoder.preprocess.resize == "crop" else ""
    pixels = f"{resize or 'image.resize((size, size)'}, Image.Resampling[resampling])"
    shares = (
        "1 / (1 + np.exp(-logits))  # of each text alone"
        if encoder.bias is not None
        else "np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()"
    )
    return _USE.format(pixels=pixels, shares=shares)


def load_onnx(folder: Path, encoder: Encoder) -> Loaded:
    """By onnxruntime where it is installed; else by the reference evaluator of onnx."""
    missing = ""
    try:
        import onnxruntime

        library = f"onnxruntime {onnxruntime.__version__}"
        image, text = (
            onnxruntime.InferenceSession(
                folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
            )
            for name in ("image", "text")
        )
    except ImportError:
        from onnx import __version__
        from onnx.reference import ReferenceEvaluator

        library, missing = f"the reference evaluator of onnx {__version__}", "onnxruntime"
        image, text = (ReferenceEvaluator(folder / f"{name}.onnx") for name in ("image", "text"))
    preprocess = encoder.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))

    def embed_images(images: Sequence[Image.Image]) -> np.ndarray:
        pixels = torch.stack([eval_transform(image, preprocess) for image in images])
        return _run(image, "pixel_values", (pixels.float() / 255 - mean) / std)

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        return _run(text, "input_ids", _ids(encoder, texts))

    return Loaded(library, embed_images, embed_texts, resizes=False, missing=missing)


def _run(session: Any, name: str, values: Tensor) -> np.ndarray:
    embeds: np.ndarray = session.run(None, {name: values.numpy()})[0]
    return embeds


def _ids(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """(B, L), filled up to the context length."""
    length = encoder.preprocess.context_length
    ids, _ = tokenize(encoder.tokenizer, texts, context_length=length)
    whole = ids.new_full((len(ids), length), encoder.tokenizer.pad_token_id)
    whole[:, : ids.shape[1]] = ids
    return whole


def _facts(encoder: Encoder) -> dict[str, Any]:
    preprocess = encoder.preprocess
    foreign = preprocess if isinstance(preprocess, ForeignPreprocess) else ForeignPreprocess()
    return {
        "embed_dim": encoder.embed_dim,
        "scale": encoder.scale,
        "bias": encoder.bias,
        "image": {
            "size": preprocess.image_size,
            "resize": preprocess.resize,
            "interpolation": foreign.interpolation,
            "as": foreign.library,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        },
        "text": {
            "context_length": preprocess.context_length,
            "pad_token_id": encoder.tokenizer.pad_token_id,
        },
    }

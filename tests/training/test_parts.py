"""A batch computed in parts with all negatives: its gradients are those of the whole batch, with
what dropout leaves out in each part left out in both of its passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import write_config
from torch import Tensor

from clipkit.config import load_config
from clipkit.losses import contrastive_loss, sigmoid_loss
from clipkit.training.start import begin
from clipkit.training.step import TrainStep
from clipkit.types import Batch

PAIRS, PARTS = 256, 4


def batch_in_parts(tokenizer: Any, image_size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (PAIRS, 3, image_size, image_size), generator=generator, dtype=torch.uint8
    )
    names = [f"{'red' if i % 2 else 'blue'} apple number {i}" for i in range(PAIRS)]
    ids = tokenizer(names, padding=True, truncation=True, max_length=16, return_tensors="pt")
    valid = torch.rand(PAIRS, generator=generator) > 0.1
    parts = []
    for step, rows in enumerate(torch.arange(PAIRS).split(PAIRS // PARTS)):
        parts.append(
            Batch(
                pixel_values=pixels[rows], input_ids=ids["input_ids"][rows], valid=valid[rows],
                keys=[str(row) for row in rows.tolist()], step=step,
                groups=torch.stack([rows, rows], dim=1),
            )
        )  # fmt: skip
    return parts


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_gradients_are_those_of_the_whole_batch_with_dropout_in_images_patches_and_text(
    tmp_path: Path, kind: str
) -> None:
    path = write_config(
        tmp_path, loss={"kind": kind}, train__batch_size=PAIRS, data__evaluate={},
        train__micro_batch=PAIRS // PARTS, model__vision__patch_dropout=0.5,
        data__train=str(Path(__file__).parents[2] / "data/emoji/train-*.tar"),
    )  # fmt: skip
    begun = begin(load_config(path, []))
    tokenizer, model, _ = begun.build(tmp_path / "run", keep=False)
    step = TrainStep(model, model, begun.accelerator, begun.config)
    parts = batch_in_parts(tokenizer, 32)
    model.train()

    def gradients() -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    result = step.gradients(parts, all_valid=False)
    cached = gradients()
    outputs = [step._forward(part) for part in parts]
    images = torch.cat([output.image_embeds for output in outputs])
    texts = torch.cat([output.text_embeds for output in outputs])
    valid = torch.cat([part.valid for part in parts])
    first = outputs[0]
    if kind == "sigmoid":
        loss = sigmoid_loss(images, texts, first.scale, first.bias, valid)
    else:
        loss = contrastive_loss(images, texts, first.scale, valid)
    loss.backward()
    whole = gradients()
    assert float(result.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert cached.keys() == whole.keys()
    assert any("scale" in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    # Each part drops out its own: with one mask for all, other gradients would come out.
    again = step._forward(parts[1]).image_embeds
    assert torch.equal(again, outputs[1].image_embeds)
    parts[1].step = 0
    assert not torch.equal(step._forward(parts[1]).image_embeds, again)

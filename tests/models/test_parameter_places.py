"""Where each parameter of a model stands in its tower."""

from __future__ import annotations

from clipkit.models import DualEncoder


def test_each_parameter_has_its_tower_and_its_depth(small_model: DualEncoder) -> None:
    placed = {each.name: each for each in small_model.parameters_by_depth()}
    assert list(placed) == [name for name, _ in small_model.named_parameters()]
    vision = len(small_model.backbone.vision_model.encoder.layers)
    text = len(small_model.backbone.text_model.encoder.layers)
    for start, layers, tower in (("vision", vision, "vision"), ("text", text, "text")):
        model = f"backbone.{start}_model"
        for number in range(layers):
            each = placed[f"{model}.encoder.layers.{number}.mlp.fc1.weight"]
            assert (each.tower, each.above, each.in_block) == (tower, layers - number, True)
    for name, tower, above in (
        ("vision_model.embeddings.patch_embedding.weight", "vision", vision + 1),
        ("vision_model.pre_layrnorm.weight", "vision", vision + 1),
        ("vision_model.post_layernorm.bias", "vision", 0),
        ("visual_projection.weight", "vision", 0),
        ("text_model.embeddings.token_embedding.weight", "text", text + 1),
        ("text_model.final_layer_norm.weight", "text", 0),
        ("text_projection.weight", "text", 0),
        ("logit_scale", None, 0),
    ):
        each = placed[f"backbone.{name}"]
        assert (each.tower, each.above, each.in_block) == (tower, above, False)
    assert len(small_model.blocks()) == vision + text

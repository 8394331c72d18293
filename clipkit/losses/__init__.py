"""Losses over the embeddings of all ranks; one idea, one paper, a file."""

from clipkit.losses.contrastive import contrastive_loss

__all__ = ["contrastive_loss"]

"""Losses over the embeddings of all ranks; one idea, one paper, a file."""

from clipkit.losses.accuracy import in_batch_accuracy
from clipkit.losses.contrastive import contrastive_loss
from clipkit.losses.sigmoid import sigmoid_loss

__all__ = ["contrastive_loss", "in_batch_accuracy", "sigmoid_loss"]

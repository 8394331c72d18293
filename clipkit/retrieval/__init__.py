"""Embeddings on disk, and finding in them what one looks for."""

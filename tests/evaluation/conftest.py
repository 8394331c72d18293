"""The tiny model for the tests of this folder."""

from tiny_model import tiny_encoder, tiny_folder  # noqa: F401

"""How good a model is: retrieval, zero-shot classification, and a page that shows it."""

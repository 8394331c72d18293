"""``clipkit serve``: a store as a page and a small JSON API, safe to have running."""

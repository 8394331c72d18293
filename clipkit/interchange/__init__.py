"""Models for other libraries: written, loaded there, and compared."""

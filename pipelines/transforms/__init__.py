"""Transformations, one module per family of coarse classes."""

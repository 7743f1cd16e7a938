"""Transformations, one module for each family of coarse classes."""

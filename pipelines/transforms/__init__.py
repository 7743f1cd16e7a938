"""Transformations, one module per family of coarse classes.

Other packages import `base`, `names`, `registry`, `style`.
"""

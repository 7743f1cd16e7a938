"""Transformations, one module per family of kinds.

Other packages import `base`, `names`, `registry`, `style`.
"""

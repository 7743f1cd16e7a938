"""Capabilities beyond the core, registered by entry points as those of other packages are.

Each folder can be removed together with its entry points: no other module of the package imports it.
"""

"""Frozen backbones: specification, loading, compilation and the gate."""

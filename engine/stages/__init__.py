"""Stages of a study after embedding, one module each. See `stage.Stage`."""

"""Backbones, store, probes, analysis and report."""

"""Adversarial attacks on backbones, and whether probes and detectors can tell."""

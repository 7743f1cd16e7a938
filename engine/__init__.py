"""Everything after pixels: backbones, store, probes, analysis, report."""

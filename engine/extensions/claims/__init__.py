"""Verdicts on six claims of "Substance or Style: What Does Your Image Embedding Know?" (arXiv 2307.05610)."""

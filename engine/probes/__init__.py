"""Small probes on frozen embeddings: what they are asked, how they are trained, scored, compared and saved."""

"""How easily labels are extracted from embeddings, and whether that depends on the size of the probe."""

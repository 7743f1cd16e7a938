"""Analysis without probes: neighbours, clusters and geometry of embeddings."""

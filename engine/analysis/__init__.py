"""Neighbours, clusters and geometry of embeddings."""

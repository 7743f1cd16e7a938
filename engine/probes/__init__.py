"""Probes on frozen embeddings: tasks, training, scoring, comparison and checkpoints."""

"""Style transfer networks."""

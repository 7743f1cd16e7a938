"""Studies: stages, their results and outputs."""

"""The embedding stage: plan, prepare, loop."""

"""One command that holds what is said of GPUs against a GPU: correctness first, then rates beside their ceilings.

``PYTHONPATH=src python3 -m benchmarks.gpu_check`` runs what the installed libraries allow; whatever is missing is a
skipped row with its reason. Without a GPU it fails: nothing was checked then.
"""

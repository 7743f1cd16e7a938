"""The embedding stage: plan, prepare, loop.

Other packages import `blobs`, `derived`, `plan`, `preflight`, `prepare`, `run`, `variants`.
"""

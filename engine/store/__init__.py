"""The store: a Zarr v3 group with a manifest and a journal."""

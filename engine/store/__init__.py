"""The store: a Zarr v3 group with a manifest and a journal.

Other packages import `catalog`, `compaction`, `files`, `identity`, `importer`, `journal`, `layout`, `lock`, `manifest`,
`records`, `removal`, `schema3`, `store`, `table`, `verify`.
"""

"""Stages of a study after embedding, one module each. See `stage.Stage`.

Other packages import `added`, `elsewhere`, `execution`, `pictures`, `probes`, `registry`, `results`, `shift`,
`shift.section`, `stage`, `stamp`, `tables`.
"""

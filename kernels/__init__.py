"""Operations missing in DALI, keyed random numbers, and the fused probe step.

Other packages import `contraction`, `cpu`, `difference`, `dispatch`, `displacement`, `halftone`, `jpeg_codec`, `noise`,
`philox`, `probe_data`, `probe_heads`, `probe_step`, `shuffle`, `split_products`, `tables`, `warp`.
"""

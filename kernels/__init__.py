"""Operations missing in DALI, keyed random numbers, and the fused probe step."""

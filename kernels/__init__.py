"""Operations that DALI does not have, keyed random numbers, and the fused probe step."""

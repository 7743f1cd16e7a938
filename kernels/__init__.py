"""The ground floor: operations DALI has not got, keyed random numbers, and the fused probe step."""

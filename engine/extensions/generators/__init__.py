"""Whether probes know painting styles of generators that they were not trained on."""

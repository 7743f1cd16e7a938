"""Attentive probes: is it in the tokens that pooling averages?"""

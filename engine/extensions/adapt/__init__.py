"""Adapters: one layer on top of a frozen embedding that keeps both transformation and class."""

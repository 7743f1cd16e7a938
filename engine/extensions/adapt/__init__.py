"""Adapters: one layer on top of a frozen embedding that keeps both style and class."""

"""Compiled runtimes of backbones."""

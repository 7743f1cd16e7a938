"""Rows of results that travel between machines, directories of them, and static sites."""

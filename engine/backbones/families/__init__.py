"""Backbone families, one module each, which registers itself when the registry imports it; and what several share."""

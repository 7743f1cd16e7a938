"""Suites beyond substance31. Nothing else imports them; `registry.load_all` finds their files."""

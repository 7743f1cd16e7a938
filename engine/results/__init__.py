"""The typed document of a study: models of results.json, and reading it."""

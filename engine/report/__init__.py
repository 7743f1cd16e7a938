"""The report: tables, figures and findings."""

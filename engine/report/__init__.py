"""The report: tables, figures, findings and claims."""

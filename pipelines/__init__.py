"""Images in, pixel batches out."""

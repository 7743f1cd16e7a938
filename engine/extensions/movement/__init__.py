"""Which measure of how far embeddings move predicts the loss of class accuracy."""

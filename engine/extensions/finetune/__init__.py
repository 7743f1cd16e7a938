"""Fine-tuning of networks on variants of the training photographs of a study."""

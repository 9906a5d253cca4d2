"""Model files on disk: where they are. Knows the Hugging Face cache layout; no tensors and no text."""

"""Text to token ids and back: tokenizer, template, detokenizer. Knows no model and no HTTP."""

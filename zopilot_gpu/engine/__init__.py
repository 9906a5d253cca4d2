"""The engine: many sequences through one model, a step at a time. Knows token ids and nothing of text or HTTP."""

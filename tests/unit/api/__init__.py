"""The gate, piece by piece, over tiny ASGI apps."""

"""The runners: the floor where text, store and model meet, behind one protocol (`runners.base`)."""

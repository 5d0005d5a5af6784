"""Which sparse pattern and how many zeros each layer gets, within a time."""

"""A build: stages, what they hand on, and the folder they write to."""

"""The stages of a build, one a file."""

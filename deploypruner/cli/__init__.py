"""The command line: one file a command; options come from the fields of the recipe."""

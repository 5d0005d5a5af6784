"""What the user typed as MODEL and --data, turned into a model with example inputs and into batches.

Start at `model.load_model` and `data.load_data`; every other file serves one kind of source.
"""

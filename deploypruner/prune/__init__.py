"""From scores to a smaller module: evidence, allocation, removal and its proof."""

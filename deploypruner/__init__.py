"""DeployPruner: from a trained PyTorch model to the fastest artifact that keeps its accuracy."""

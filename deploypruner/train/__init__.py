"""Recovery of a pruned model: batch-norm statistics, fine-tuning with distillation, or the user's function."""

"""From a user's model to a clean ATen graph that computes and trains as the model does, or a reason why not."""

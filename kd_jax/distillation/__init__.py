"""The method: augmentation, views, ensembles of teachers, losses, and the training step."""

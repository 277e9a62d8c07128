"""The method: augmentation, views, teachers' targets, losses, and the training step."""

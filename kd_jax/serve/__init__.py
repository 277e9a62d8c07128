"""A page on this machine that classifies images, and the same as JSON over HTTP."""

"""Measures of logits, in NumPy: accuracy, calibration, and how a student follows its teacher."""

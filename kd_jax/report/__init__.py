"""Reports of finished runs: comparisons, statistics, figures and one HTML page. Imports no JAX."""

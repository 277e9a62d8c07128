"""What runs left behind, compared, drawn, and written as one page. Imports no JAX."""

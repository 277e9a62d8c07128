"""How convolutions and norms are computed on a CPU: the forms, the choice, and the C++."""

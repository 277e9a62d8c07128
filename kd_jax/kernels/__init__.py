"""How convolutions and norms are computed on CPU: their forms, the choice of one, the C++ code."""

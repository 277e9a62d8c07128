"""Teachers: loaded, with the outputs that the data set asks for."""

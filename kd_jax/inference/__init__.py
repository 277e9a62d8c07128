"""A network from anywhere (run, directory, exported file), and its answers to any images."""

"""Networks in files: our own format, and files of other projects, read as data.

- `state_files`: reads a file of weights, by its format. **A new file format is added here.**
- `torch_file`, `torch_pickle`, `pickle_data`: the reader of PyTorch files, without PyTorch: the zip
  archive, the tensors in its pickle, and the pickle itself.
- `state_dicts`: selects the weights of the network among the contents of a file.
- `name_maps`: names and axis orders of arrays in files. A new naming scheme is added here.
- `torch_import`: converts a state dict to Flax variables and back.
- `saved_network`: a network as kd_jax stores it, `model.json` and `model.safetensors`.
- `published`: addresses and accuracies of published weights, and their download.
"""

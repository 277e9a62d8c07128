"""Teachers: loading (`load`), matching outputs to classes (`heads`), and the `certificate`."""

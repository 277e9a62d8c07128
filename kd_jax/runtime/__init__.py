"""What every part stands on: processor, devices, processes, signals, errors, files, caches."""

"""Studies: a table of runs (`spec`), the processes that train them (`worker`), and their leases."""

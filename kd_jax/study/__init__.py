"""Tables of runs: what a study is, and the processes that work it off."""

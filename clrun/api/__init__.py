"""clrun from Python and in notebooks: runs are started in a process of their own, and results are tables of pandas."""

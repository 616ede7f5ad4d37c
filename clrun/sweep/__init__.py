"""Many runs: what is trained together, in which processes, and on which cluster."""

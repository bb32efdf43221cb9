"""The bookkeeping of platforms: which there are, their accounts, tasks, sweeps and workers."""

"""Programs built on rnnjax, each run as ``python -m experiments.<name>``."""

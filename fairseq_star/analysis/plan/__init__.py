"""A run before it is begun: how long it will take, whether it fits, measured on this machine with its own options."""

"""`membart demo`: the whole mission on this machine in minutes."""

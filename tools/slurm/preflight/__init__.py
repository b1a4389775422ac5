"""Nodes are examined before a job spends its hours on them: one process a rank, under srun.

`facts` looks at one node, `inputs` at what it is to read, `gpus` at its GPUs, `network` at the ways between
nodes; `verdict` compares nodes and says which are bad; `rank` is what one process does.
"""

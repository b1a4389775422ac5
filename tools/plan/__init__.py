"""`membart plan`: what a recipe needs on a cluster, before an hour of it is spent.

`cluster` has the machines, `case` a recipe on them; `operations` counts kernels, `costs` turns shapes into
time and traffic; `report` puts all of it into figures and words. Memory is `pretrain.planning`'s.
"""

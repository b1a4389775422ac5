"""`membart slurm`: a pipeline of cluster jobs from one YAML file.

`pipeline` reads the file, `site` the cluster's settings; `chain` decides what is still to do and what waits
for what; `sbatch` writes the lines and submits them; `status` and `queue` look at what became of them;
`preflight` examines the nodes of a running job. The jobs themselves are the scripts of `slurm/`.
"""

"""Probes on frozen embeddings: tasks, training, scoring, comparison and checkpoints.

Other packages import `batches`, `checkpoint`, `config`, `crossed`, `dataset`, `evaluate`, `heads`, `leave_one_out`,
`linear`, `mlp`, `objective`, `outcomes`, `preconditioner`, `resampling`, `ridge`, `run`, `single_task`, `solver`,
`tasks`, `trainer`, `training_rows`.
"""

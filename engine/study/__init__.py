"""Studies: stages, their results and outputs.

Other packages import `api`, `compare`, `diff`, `explore`, `export`, `file`, `hub`, `outputs`, `plan`, `predict`,
`quick`, `report`, `runner`.
"""

"""Implementation of the commands; each module is imported when its command runs.

Other packages import `arguments`, `json_output`.
"""

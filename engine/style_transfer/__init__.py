"""Style transfer networks.

Other packages import `networks`.
"""

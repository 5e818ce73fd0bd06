"""Networks that no release of diffusers has, with their authors' names of weights.

They know tensors alone: no requests, files or devices. A family brings them into its pipeline, and
a toy makes a tiny one of them.
"""

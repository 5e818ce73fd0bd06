"""Networks that no release of diffusers has. Weights keep the names that their authors gave them.

The networks take tensors only: no requests, files or devices. A family puts them into its pipeline,
and a toy makes a tiny one of them.
"""

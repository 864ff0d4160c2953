"""Triton bodies of the operations, one file for each contract file of the same name: kernels, launchers, CONFIGS.

Only reached on a GPU, under Triton's interpreter (TRITON_INTERPRET=1, on CPU tensors), or by ahead-of-time
compilation; importing `mdinfer.kernels` imports nothing from here.
"""

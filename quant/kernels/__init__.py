"""Kernels of the cuda backend, in Triton, one kind a file. Must not know layers, modules or artifacts.

Each is a custom operator of torch ("halftone::...") with a fake implementation, so that compiled graphs do not break;
where nothing is traced, its function is called without what dispatch costs. Each is defined by a plain function in
`quant.kernels.reference`.
"""

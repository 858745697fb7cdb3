"""The plug-in for lmms-eval: our models there, and our region benchmarks as its tasks.

LLaVA's image-level benchmarks (VQAv2, GQA, MME, ...) are lmms-eval's own tasks and are not written here
again. Nothing of lmms-eval is imported before it asks for the plug-in.
"""

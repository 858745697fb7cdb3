"""The plug-in for lmms-eval: this project's models there, and its benchmarks as tasks.

LLaVA's image-level benchmarks (VQAv2, GQA, MME, ...) are tasks of lmms-eval itself. lmms-eval is
imported only after it has loaded the plug-in.
"""

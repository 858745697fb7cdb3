"""The task files for lmms-eval and the functions that they name."""

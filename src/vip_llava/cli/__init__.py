"""The program `vip-llava`: one module a verb. `main` joins them."""

"""Every kernel at the model's real shapes: one list of cases, used to compile, to check and to time them."""

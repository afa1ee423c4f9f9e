"""How people write problems: callables, whole problems, and cvxpy expressions read as torch."""

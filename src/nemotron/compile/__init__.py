"""The preflight: a resolved config in, a plan with findings out. Imports no engine, writes nothing."""

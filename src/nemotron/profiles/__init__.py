"""Where steps run besides here: profiles in TOML files, typed and strict."""

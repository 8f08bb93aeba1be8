"""What to build, as strict YAML: bundled recipes, their schema, tables of tiles, and the code that reads them."""

"""Opens and checks a `.llmc` file before anything is mapped; evaluates weight bindings."""

"""Which tokens begin a text, end an answer and have names, from all files that say so."""

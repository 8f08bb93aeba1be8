"""How `llmc run` reads prompts (one, a file of them, a conversation) and writes what the engine says."""

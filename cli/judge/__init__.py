"""What judges engines share: tables and gates of `llmc eval` and `llmc bench`, what they read, and a build's report."""

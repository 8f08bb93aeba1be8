"""config.json and generation_config.json of all spellings become one value; unknown keys are refused."""

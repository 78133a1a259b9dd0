"""The command line: from a configuration to model, data and Trainer."""

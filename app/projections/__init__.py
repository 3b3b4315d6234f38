"""Read models: pure folds over the log, which can be thrown away and rebuilt."""

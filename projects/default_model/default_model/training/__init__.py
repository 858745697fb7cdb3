"""The trainer of the default model, on scenes made as it goes (`data.scenes`)."""

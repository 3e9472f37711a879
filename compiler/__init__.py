"""From a trained model to a module that runs: front ends, pipeline, tuning, command line."""

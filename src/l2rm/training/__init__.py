"""From pairs to a trained model in a RUN folder."""

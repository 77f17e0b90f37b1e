"""Export: a trained model as a file or folder that runs elsewhere."""

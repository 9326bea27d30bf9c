"""LightningModules that train and test a backbone, and what they are built from."""

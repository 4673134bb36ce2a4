"""What the FedIRL paper has tables of."""

"""weakunet: where the lesions are, learned from nothing but their number (GP-Unet)."""

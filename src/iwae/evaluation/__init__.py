"""What a model is worth: L_K, its parts, its units, its posterior; and the fitted model itself."""

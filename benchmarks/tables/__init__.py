"""Tables: held-out densities, imputation and anomalies, beside the models of scikit-learn."""

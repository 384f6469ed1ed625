"""How faithful explanations are, measured on trained networks and real pictures beside other methods."""

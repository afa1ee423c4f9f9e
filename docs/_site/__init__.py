"""What the site needs besides Sphinx: how figures are found, how formulas are set, where links lead."""

"""How a module is judged: against a reference, against its peers, on labelled data."""

"""What remains of a pruned graph made to compute what the whole one did, in closed form."""

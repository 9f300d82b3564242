"""What the losses of other libraries climb: their own code on every batch of a toy (`make verify-peers`).

The measurement is `agents.verification.verify`. An adapter hands the enumerated batch to the library's own method, with
a table of log-probabilities in place of a model.
"""

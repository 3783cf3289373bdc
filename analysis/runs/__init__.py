"""What recorded runs say.

`diagnosis` measures one run at every snapshot, or several in one table. `outcomes` says what many runs of a study ended
with, and `correlations` which label-free measures go with accuracy over runs. `vit_layers` looks into a vision
transformer layer by layer, and `official_logs` reads logs of the official code. `kept_results` keeps results in the
directories of their runs.
"""

"""How far a reward can be trusted: measured on pairs whose better answer is known."""

"""How good a model is: loss and perplexity, choices between options, and answers that can be checked."""

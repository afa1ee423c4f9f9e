"""Tests of the contract: what a user of the layer may rely on, written without a look at how it is made."""

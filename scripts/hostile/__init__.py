"""The attempts of scripts/campaign.py to break the program."""

"""Session Resource Manager: decides whether an OTT account may start one more playback session."""

"""The rules of playback sessions. Knows no web framework, no server and no scheduler."""

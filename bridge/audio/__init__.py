"""Pure: G.711 mu-law, tones and resampling."""
